"""From what the user names to a source."""

from pathlib import Path

from icl_jax.importing.sources.source import Source


def open_source(text: str, cache: Path, stage: str = "") -> Source:
    """``hf:OWNER/NAME[@REVISION]``, or a path or glob. `cache`: where downloads go. Raises UserError.

    stage: of training, those that are taken, see `series_of`.
    """
    if text.startswith("hf:"):
        from icl_jax.importing.sources.hub import HubSource  # and its HTTP client

        return HubSource(text, cache, stage)
    from icl_jax.importing.sources.folder import FolderSource

    return FolderSource(text, stage)
