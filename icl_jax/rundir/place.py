"""Where a run directory is, which member of it is meant, and what is read of it whole."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from etils import epath

from icl_jax.config import Config, UserError
from icl_jax.rundir.checkpoints import saved_steps
from icl_jax.rundir.held_out import HeldOut, load_held_out
from icl_jax.rundir.manifest import Manifest
from icl_jax.rundir.record import load_record
from icl_jax.rundir.seals import Tally, sha256_of

if TYPE_CHECKING:
    import xarray as xr


CORPORA = "corpora"
"""In environment.json, of members with rows of their own: SHA-256 of the corpus of each data.seed."""
HELD_OUT, OWN_HELD_OUT = "held_out.zarr", "held_out"
"""Of a run with one corpus; the folder of SEED.zarr for each data.seed, where members have rows of their own."""


@dataclass(frozen=True, slots=True)
class Place:
    """A run directory, or with `index` one member of it; `RunDir` says more."""

    path: epath.Path
    config: Config
    environment: dict[str, Any]
    index: int | None = None

    @property
    def root(self) -> epath.Path:
        """The folder that was trained in: `path`, or of a member that of all."""
        return self.path if self.index is None else self.path.parent.parent

    @property
    def run_id(self) -> str:
        """Eight hexadecimal digits that stay the same through every resume; of a member with its number behind."""
        run_id = str(self.environment["run_id"])
        return run_id if self.index is None else f"{run_id}-{self.index}"

    @property
    def imported(self) -> dict[str, Any] | None:
        """Where the snapshots are from, of a run that was not trained here; see docs/run-directory.md."""
        found = self.environment.get("imported")
        return found if isinstance(found, dict) else None

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.root / "manifest.jsonl", self.index)

    def last_state_step(self) -> int | None:
        """The step that the run can be resumed from, or None if no full state was saved."""
        steps = saved_steps(self.root / "state")
        return steps[-1] if steps else None

    def load_record(self, tally: Tally | None = None) -> "xr.Dataset":
        """The record so far, see `icl_jax.rundir.record.load_record`. Raises UserError for an imported run."""
        if self.imported is not None:
            raise UserError(f"{self.path}: has no record: its snapshots were imported, not trained here")
        return load_record(self.root / "record.zarr", tally, self.index)

    @property
    def corpus_sha256(self) -> str:
        """Of the rows that were trained on; of members with their own and not looked at one by one, of all."""
        own = self.environment.get(CORPORA, {}) if self.index is not None else {}
        return str(own.get(str(self.config.data.seed), self.environment["corpus_sha256"]))

    @property
    def held_out_path(self) -> epath.Path:
        """Where the rows for analysis are; of members with their own and not looked at one by one, the first's."""
        own = self.root / OWN_HELD_OUT / f"{self.config.data.seed}.zarr"
        return own if CORPORA in self.environment else self.root / HELD_OUT

    def load_held_out(self, tally: Tally | None = None) -> HeldOut:
        """The rows and tokens that analysis measures on. Raises UserError if the run has none."""
        return load_held_out(self.held_out_path, tally)


def check_sha256(path: epath.Path, environment: Mapping[str, Any], text: str | None, said: str = "") -> None:
    """Raise UserError for a file that is not as environment.json says; in runs of before 2026-11-27 it says nothing."""
    expected = environment.get("sha256", {}).get(path.name)
    if expected is not None and text is None:
        raise UserError(f"{path}: missing; environment.json says that it should be there")
    if expected is not None and text is not None and sha256_of(text) != expected:
        raise UserError(f"{said}{path}: damaged: SHA-256 differs from the one in environment.json")


@contextlib.contextmanager
def writing(root: epath.Path) -> Iterator[None]:
    """Raise UserError where the operating system refuses to write."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{root}: cannot write the run directory: {error.strerror or error}") from error
