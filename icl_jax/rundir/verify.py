"""Does a run directory hold what it promises?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from icl_jax.config import Config, UserError
from icl_jax.rundir.checkpoints import load_arrays, saved_steps
from icl_jax.rundir.files import reason
from icl_jax.rundir.manifest import SnapshotEntry, params_sha256
from icl_jax.rundir.run import RunDir
from icl_jax.rundir.schedule import probe_steps, snapshot_steps

if TYPE_CHECKING:
    import xarray as xr


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
    yield from _held_out_problems(run)
    yield from _snapshot_problems(run, entries)
    yield from _state_problems(run, entries)


def _record_problems(run: RunDir) -> Iterator[str]:
    where, config = run.path / "record.zarr", run.config
    try:
        record = run.load_record().load()
    except UserError as error:
        yield str(error)
        return
    except Exception as error:  # a damaged chunk, found when it is read: zarr and numcodecs raise many types
        yield f"{where}: cannot read the record: {reason(error)}"
        return
    n_recorded = record.sizes["step"]
    state_step = run.last_state_step() or 0
    if n_recorded < state_step:
        yield f"{where}: holds {n_recorded} steps, but the state of step {state_step} was saved"
    if n_recorded > config.train.n_steps:
        yield f"{where}: holds {n_recorded} steps, but the config says {config.train.n_steps}"
    steps = np.arange(n_recorded)
    positions = np.arange(config.model.n_ctx)
    expected = {"step": steps, "tokens": steps * config.tokens_per_step, "position": positions}
    yield from _axis_problems(record, where, expected)
    bad = np.flatnonzero(~np.isfinite(record["loss"].values).all(axis=1))
    if len(bad):
        yield f"{where}: the loss of step {bad[0]} is not finite ({len(bad)} such steps)"
    yield from _probe_problems(record, run, state_step)


def _held_out_problems(run: RunDir) -> Iterator[str]:
    try:
        held_out = run.load_held_out()
    except UserError as error:
        yield str(error)
        return
    where, model = run.path / "held_out.zarr", run.config.model
    rows, n_tokens = held_out.rows, model.n_ctx + 1
    if rows.ndim != 2 or rows.shape[0] < 1 or rows.shape[1] != n_tokens:
        yield f"{where}: rows has the shape {rows.shape}: must be at least one row of {n_tokens} tokens"
    elif (rows[:, 0] != held_out.bos_id).any():
        yield f"{where}: row {int(np.argmax(rows[:, 0] != held_out.bos_id))} does not start with BOS"
    if held_out.labels is not None and held_out.labels.shape != rows.shape:
        yield f"{where}: labels has the shape {held_out.labels.shape}: must be that of rows, {rows.shape}"
    for name, ids in (("rows", rows), ("candidates", held_out.candidates)):
        if ids.size and not 0 <= ids.min() <= ids.max() < model.vocab_size:
            yield f"{where}: {name} holds ids outside 0 to {model.vocab_size - 1}"


def _axis_problems(record: "xr.Dataset", where: epath.Path, expected: dict[str, np.ndarray]) -> Iterator[str]:
    for name, values in expected.items():
        if not np.array_equal(record[name].values, values):
            yield f"{where}: {name} is not what the config says"


def _probe_problems(record: "xr.Dataset", run: RunDir, state_step: int) -> Iterator[str]:
    steps = np.array(probe_steps(run.config), dtype=np.int64)
    if not len(steps):
        return
    where, n_recorded = run.path / "record.zarr", record.sizes["probe"]
    n_promised = int(np.sum(steps < _promised_end(run.config, state_step)))
    if n_recorded < n_promised:
        yield f"{where}: holds {n_recorded} probes of {n_promised}, but the state of step {state_step} was saved"
    steps = steps[:n_recorded]
    expected = {"probe_step": steps, "probe_tokens": steps * run.config.tokens_per_step}
    yield from _axis_problems(record, where, expected)
    names = ["icl_windowed", "held_out_loss"]
    if run.config.model.n_layers:
        names.append("previous_token")
        if run.config.model.n_ctx > run.config.probes.n_repeats:  # else nothing repeats and the score is NaN
            names.append("prefix_matching")
    for name in names:
        values = record[name].values
        bad = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
        if len(bad):
            yield f"{where}: {name} of the probe at step {steps[bad[0]]} is not finite ({len(bad)} such probes)"


def _promised_end(config: Config, state_step: int) -> int:
    """Snapshots and probes of the steps before this one were written before the state of `state_step`.

    A state is saved ahead of its own step's snapshot, but for that of the last step, which ends the run.
    """
    return state_step + (state_step == config.train.n_steps)


def _snapshot_problems(run: RunDir, entries: list[SnapshotEntry]) -> Iterator[str]:
    folder = run.path / "snapshots"
    by_hash = {entry.sha256: entry.step for entry in entries}
    for entry in entries:
        path, tokens = folder / str(entry.step), entry.step * run.config.tokens_per_step
        if entry.tokens != tokens:
            yield f"{run.manifest.path}: step {entry.step}: tokens = {entry.tokens}: the config says {tokens}"
        try:
            params = load_arrays(path)
        except UserError as error:
            yield str(error)
            continue
        found = params_sha256(params)
        n_bytes = sum(array.nbytes for array in params.values())
        if found == entry.sha256 and n_bytes != entry.n_bytes:
            yield f"{run.manifest.path}: step {entry.step}: n_bytes = {entry.n_bytes}: the snapshot has {n_bytes}"
        elif found != entry.sha256 and found in by_hash:
            yield f"{path}: swapped: it holds the parameters of step {by_hash[found]}"
        elif found != entry.sha256:
            yield f"{path}: its parameters have changed: SHA-256 {found[:12]}, the manifest says {entry.sha256[:12]}"
    state_step = run.last_state_step() or 0
    listed = {entry.step for entry in entries}
    promised = {step for step in snapshot_steps(run.config) if step < _promised_end(run.config, state_step)}
    for step in sorted(promised - listed):
        what = f"the snapshot of step {step} is not listed, but the state of step {state_step} was saved"
        yield f"{run.manifest.path}: {what}"
    last = entries[-1].step if entries else -1
    for step in sorted(set(saved_steps(folder)) - listed):
        if step < last:
            yield f"{folder / str(step)}: is not in the manifest"


def _state_problems(run: RunDir, entries: list[SnapshotEntry]) -> Iterator[str]:
    expected = {entry.step: entry.sha256 for entry in entries}
    for step in saved_steps(run.path / "state"):
        path = run.path / "state" / str(step)
        try:
            state = run.load_state(step)
        except UserError as error:
            yield str(error)
            continue
        params = {name.removeprefix("params."): array for name, array in state.items() if name.startswith("params.")}
        if step in expected and params_sha256(params) != expected[step]:
            yield f"{path}: its parameters are not those of the snapshot of step {step}"
