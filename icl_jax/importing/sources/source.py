"""What every source of checkpoints offers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from icl_jax.importing.sources.revision import Revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A checkpoint that is on this machine now."""

    path: Path
    """A folder, or the one file that holds all."""
    commit: str | None = None
    """Of the repository that it is from."""


class Source(Protocol):
    """Where checkpoints come from."""

    @property
    def name(self) -> str:
        """As parentage says it: hf:REPO, or an absolute path."""
        ...

    @property
    def title(self) -> str:
        """What a series is known by: the repository's or the folder's own name."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether reading a checkpoint costs no download."""
        ...

    def revisions(self) -> tuple[list[Revision], list[str]]:
        """All checkpoints in the order of their steps, or the one; and what is left out, in words. Raises UserError."""
        ...

    def config(self, revision: Revision) -> dict[str, Any] | None:
        """config.json alone, before anything large is fetched; None where it is inside the weights' file."""
        ...

    def files(self, revision: Revision) -> dict[str, str]:
        """Names of the files of a checkpoint, and of those with weights a hash of what they hold. Raises UserError."""
        ...

    def fetch(self, revision: Revision) -> AbstractContextManager[Fetched]:
        """The checkpoint on this machine; what was fetched for it is deleted at the end. Raises UserError."""
        ...
