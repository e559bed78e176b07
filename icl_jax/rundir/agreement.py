"""What record, manifest and folders say of each other: a copy that lacks a part must not pass for a shorter run."""

import contextlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from icl_jax.config import Config, UserError
from icl_jax.rundir.checkpoints import saved_steps
from icl_jax.rundir.manifest import SnapshotEntry
from icl_jax.rundir.schedule import snapshot_steps

if TYPE_CHECKING:
    from icl_jax.rundir.place import Place


def promised_end(config: Config, state_step: int) -> int:
    """Snapshots and probes of the steps before this one were written before the state of `state_step`.

    A state is saved ahead of its own step's snapshot, but for that of the last step, which ends the run.
    """
    return state_step + (state_step == config.train.n_steps)


def read_snapshots(run: "Place") -> list[SnapshotEntry]:
    """The manifest's entries. Raises UserError where record, states or folders say that some are missing."""
    state_step, folders = run.last_state_step() or 0, saved_steps(run.root / "snapshots")
    entries, n_recorded = run.manifest.read(), 0
    if set(snapshot_steps(run.config)) - {entry.step for entry in entries}:
        with contextlib.suppress(UserError):  # who reads the record says so
            n_recorded = run.load_record().sizes["step"]
        if run.index is not None:  # a member that has failed is not in later states
            state_step = min(state_step, n_recorded)
        # Again after the record: a run that is being trained adds to it after the manifest.
        entries = run.manifest.read()
    for problem in listing_problems(run, entries, n_recorded, state_step, folders):
        raise UserError(f"{problem}; icl-jax verify tells more")
    return entries


def listing_problems(
    run: "Place", entries: list[SnapshotEntry], n_recorded: int, state_step: int, folders: Collection[int]
) -> Iterator[str]:
    """A line for each snapshot that the manifest should list and does not.

    A snapshot is listed before its step is recorded; of a resume that was killed, folders of later steps are left.
    """
    listed = {entry.step for entry in entries}
    for step in snapshot_steps(run.config):
        if step in listed:
            continue
        if step < promised_end(run.config, state_step):
            yield f"{run.manifest.path}: {_unlisted(step)}, but the state of step {state_step} was saved"
        elif step < n_recorded:
            yield f"{run.manifest.path}: {_unlisted(step)}, but the record holds {n_recorded} steps"
    if run.imported is not None:
        yield from _imported_problems(run, listed, set(folders))
    last = entries[-1].step if entries else -1
    for step in sorted(set(folders) - listed):
        if step < last:
            yield f"{run.root / 'snapshots' / str(step)}: is not in the manifest"


def _imported_problems(run: "Place", listed: Collection[int], folders: Collection[int]) -> Iterator[str]:
    """environment.json names a step before its snapshot is there: only the last may be missing, of a killed import."""
    assert run.imported is not None
    named = [int(step) for step in run.imported.get("snapshots", {})]
    for step in named:
        if step not in listed and (step != named[-1] or step in folders):
            again = "the same icl-jax import adds it again"
            yield f"{run.manifest.path}: {_unlisted(step)}, but environment.json says that it was imported; {again}"


def _unlisted(step: int) -> str:
    return f"the snapshot of step {step} is not listed"
