"""Checkpoints on this machine: one in a folder or a file, or many in folders side by side."""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from icl_jax.config import UserError
from icl_jax.importing.checkpoint import content_sha256, is_checkpoint, is_weights, load_config_json, numbered_pth
from icl_jax.importing.sources.revision import Revision, revision_of, series_of
from icl_jax.importing.sources.source import Fetched

_MOST_STEPS = 10**9


class FolderSource:
    """A path or a glob. Folders are named by their steps: step1000, checkpoint-1000 and the like."""

    def __init__(self, pattern: str, stage: str = "") -> None:
        self._stage = stage
        self._pattern = pattern
        expanded = os.path.expanduser(pattern)
        root = Path(expanded)
        numbered = numbered_pth(root) if root.is_dir() and (root / "config.json").is_file() else {}
        if numbered:
            self._is_one, self._paths = False, numbered
            return
        if root.exists():
            self._is_one = is_checkpoint(root)
            inside = root.iterdir() if root.is_dir() else ()
            found = [root] if self._is_one else [path for path in inside if _may_be_one(path)]
            allowed = "must hold a config.json with weights, a .gguf file, or a folder of such for each step"
            if not root.is_dir():
                allowed = "is neither a folder nor a file of weights"
        else:
            found = [path for path in map(Path, glob.glob(expanded)) if is_checkpoint(path)]
            self._is_one = len(found) == 1
            allowed = "no such file or folder, and no glob of checkpoints; a repository of the hub is hf:OWNER/NAME"
        if not found:
            raise UserError(f"{pattern}: {allowed}")
        self._paths = {path.name if path.is_dir() else path.stem: path for path in found}

    @property
    def is_local(self) -> bool:
        return True

    @property
    def name(self) -> str:
        return os.path.abspath(os.path.expanduser(self._pattern))

    @property
    def title(self) -> str:
        return Path(self.name).name if not self._is_one else Path(self.name).parent.name

    def revisions(self) -> tuple[list[Revision], list[str]]:
        """See `Source`."""
        if self._is_one:
            (name,) = self._paths
            return [replace(revision_of(name), stage=(1, 0))], []
        series, words = series_of(list(self._paths), self._stage)
        if not series:
            shown = ", ".join(sorted(self._paths)[:3])
            raise UserError(f"{self._pattern}: no folder is named by its step, such as step1000; there are {shown}")
        # A number that no count of steps comes to is one of tokens.
        series = [replace(r, tokens=r.step) if (r.step or 0) > _MOST_STEPS else r for r in series]
        taken = {revision.name for revision in series}
        unnamed = sorted(name for name in self._paths if revision_of(name).step is None and name not in taken)
        return series, words + [f"left out: {name}, whose name says no step" for name in unnamed]

    def config(self, revision: Revision) -> dict[str, Any] | None:
        """See `Source`."""
        path = self._paths[revision.name]
        return load_config_json(path) if (path / "config.json").is_file() else None

    def files(self, revision: Revision) -> dict[str, str]:
        """See `Source`. A hash that is not what the hub's notes say is no error here, but another one."""
        path = self._paths[revision.name]
        if path.is_file():
            return {path.suffix: content_sha256(path)}
        found = {file.name: file for file in sorted(path.iterdir()) if file.is_file()}
        return {name: content_sha256(file) if is_weights(name) else "" for name, file in found.items()}

    @contextmanager
    def fetch(self, revision: Revision) -> Iterator[Fetched]:
        """See `Source`."""
        yield Fetched(path=self._paths[revision.name])


def _may_be_one(path: Path) -> bool:
    """A checkpoint, or a folder that is named as one: what it lacks is then said."""
    return is_checkpoint(path) or (path.is_dir() and revision_of(path.name).step is not None)
