"""Does a run directory hold what it promises?"""

from collections.abc import Iterator

import numpy as np

from icl_jax.config import UserError
from icl_jax.rundir.checkpoints import load_arrays, saved_steps
from icl_jax.rundir.manifest import SnapshotEntry, params_sha256
from icl_jax.rundir.run import RunDir
from icl_jax.rundir.schedule import snapshot_steps


def problems(run: RunDir) -> Iterator[str]:
    """One line for each thing that is wrong, naming the file or step; nothing if all is well.

    Hashes of all snapshots are computed again. A run that has not ended, or was killed, is judged by what it had
    reached: work that a resume would do again is no problem.
    """
    try:
        entries = run.manifest.read()
    except UserError as error:
        yield str(error)
        return
    yield from _record_problems(run)
    yield from _snapshot_problems(run, entries)
    yield from _state_problems(run, entries)


def _record_problems(run: RunDir) -> Iterator[str]:
    try:
        record = run.load_record()
    except UserError as error:
        yield str(error)
        return
    where, n_steps, n_recorded = run.path / "record.zarr", run.config.train.n_steps, record.sizes["step"]
    state_step = run.last_state_step() or 0
    if n_recorded < state_step:
        yield f"{where}: holds {n_recorded} steps, but the state of step {state_step} was saved"
    if n_recorded > n_steps:
        yield f"{where}: holds {n_recorded} steps, but the config says {n_steps}"
    if record.sizes["position"] != run.config.model.n_ctx:
        yield f"{where}: holds {record.sizes['position']} positions, but the config says {run.config.model.n_ctx}"
    if not np.array_equal(record["step"].values, np.arange(n_recorded)):
        yield f"{where}: the step axis is not 0, 1, 2, ..."
    bad = np.flatnonzero(~np.isfinite(record["loss"].values).all(axis=1))
    if len(bad):
        yield f"{where}: the loss of step {bad[0]} is not finite ({len(bad)} such steps)"


def _snapshot_problems(run: RunDir, entries: list[SnapshotEntry]) -> Iterator[str]:
    folder = run.path / "snapshots"
    by_hash = {entry.sha256: entry.step for entry in entries}
    for entry in entries:
        path = folder / str(entry.step)
        try:
            params = load_arrays(path)
        except UserError as error:
            yield str(error)
            continue
        found = params_sha256(params)
        n_bytes = sum(array.nbytes for array in params.values())
        if found == entry.sha256 and n_bytes == entry.n_bytes:
            continue
        if found in by_hash and by_hash[found] != entry.step:
            yield f"{path}: swapped: it holds the parameters of step {by_hash[found]}"
        else:
            yield f"{path}: its parameters have changed: SHA-256 {found[:12]}, the manifest says {entry.sha256[:12]}"
    state_step = run.last_state_step() or 0
    promised = {step for step in snapshot_steps(run.config) if step < state_step}
    for step in sorted(promised - {entry.step for entry in entries}):
        yield f"{run.manifest.path}: the snapshot of step {step} is not listed, but the state of step {state_step} was saved"
    last = entries[-1].step if entries else -1
    for step in sorted(set(saved_steps(folder)) - {entry.step for entry in entries}):
        if step < last:
            yield f"{folder / str(step)}: is not in the manifest"


def _state_problems(run: RunDir, entries: list[SnapshotEntry]) -> Iterator[str]:
    step = run.last_state_step()
    if step is None:
        return
    try:
        state = run.load_state(step)
    except UserError as error:
        yield str(error)
        return
    if int(state["step"]) != step:
        yield f"{run.path / 'state' / str(step)}: swapped: it holds the state of step {int(state['step'])}"
    params = {name.removeprefix("params."): array for name, array in state.items() if name.startswith("params.")}
    expected = {entry.step: entry.sha256 for entry in entries}.get(step)
    if expected is not None and params_sha256(params) != expected:
        yield f"{run.path / 'state' / str(step)}: its parameters are not those of the snapshot of step {step}"
