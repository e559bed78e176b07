"""From a config to its corpus."""

from dataclasses import replace
from typing import Any

from rich.console import Console

from icl_jax.config import Config, MembersConfig
from icl_jax.config.corpora import corpus_kind
from icl_jax.data.corpus import Corpus, Progress
from icl_jax.data.own_rows import OwnRows
from icl_jax.display import PreparationDisplay


def open_shown(config: Config, console: Console) -> Corpus:
    """`open_corpus`, showing on the console how far the preparation is. Raises UserError."""
    with PreparationDisplay(console) as display:
        return open_corpus(config, progress=display)


def open_corpus(config: Config, *, progress: Progress | None = None) -> Corpus:
    """Open the corpus of ``config.data``, preparing its tokens first where the cache does not hold them.

    Of members that differ in data.seed it is an `OwnRows`.
    ``progress(done_bytes, total_bytes, label)`` is called while tokens are prepared. Raises UserError for a source,
    file or tokenizer that cannot be used, or a corpus too small for ``data.held_out_rows``.
    """
    kind, alone = corpus_kind(config.data.corpus), replace(config, members=MembersConfig())
    corpora: Any = tuple(
        kind.open(replace(alone, data=replace(alone.data, seed=seed)), progress) for seed in config.row_seeds
    )
    return corpora[0] if len(corpora) == 1 else OwnRows(corpora)
