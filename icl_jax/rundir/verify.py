"""Does a run directory hold what it promises?"""

import io
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.agreement import listing_problems, promised_end
from icl_jax.rundir.checkpoints import saved_steps
from icl_jax.rundir.intervened import are_on, first_seen
from icl_jax.rundir.manifest import SnapshotEntry, snapshot_sha256
from icl_jax.rundir.record import INTERVENED, member_coordinates
from icl_jax.rundir.run import RunDir
from icl_jax.rundir.schedule import probe_steps
from icl_jax.rundir.seals import Tally, files_under, seal_problems, unusable

if TYPE_CHECKING:
    import xarray as xr


def problems(run: RunDir, tally: Tally | None = None) -> Iterator[str]:
    """One line for each thing that is wrong, naming the file or step; nothing if all is well.

    Every store is read whole and its seal or hashes are computed again; `tally` counts. A run that has not ended, or
    was killed, is judged by what it had reached: work that a resume would do again is no problem.
    """
    tally = Tally() if tally is None else tally
    for part in (_run_problems, _held_out_problems, _state_problems, _analysis_problems):
        try:
            yield from part(run, tally)
        except UserError as error:
            yield str(error)


def _run_problems(run: RunDir, tally: Tally) -> Iterator[str]:
    """Of the record, the manifest, the snapshots and the tokenizer."""
    # Read before the manifest: a run that is being trained adds to the manifest before it adds to the record.
    n_recorded, state_step, folders = 0, run.last_state_step() or 0, saved_steps(run.root / "snapshots")
    try:
        if run.imported is None:
            record = run.load_record(tally)
            with unusable(run.root / "record.zarr", "damaged"):
                record.load()
            n_recorded = record.sizes["step"]
            if run.index is not None:  # a member that has failed is not in later states
                state_step = min(state_step, n_recorded)
            yield from _record_problems(run, record, state_step)
    except UserError as error:
        yield str(error)
    entries = run.manifest.read()
    yield from _snapshot_problems(run, entries, tally)
    yield from listing_problems(run, entries, n_recorded, state_step, folders)
    yield from _origin_problems(run, entries)
    run.read_tokenizer()


def _record_problems(run: RunDir, record: "xr.Dataset", state_step: int) -> Iterator[str]:
    where, config = run.root / "record.zarr", run.config
    n_recorded = record.sizes["step"]
    if n_recorded < state_step:
        yield f"{where}: holds {n_recorded} steps, but the state of step {state_step} was saved"
    if n_recorded > config.train.n_steps:
        yield f"{where}: holds {n_recorded} steps, but the config says {config.train.n_steps}"
    steps = np.arange(n_recorded)
    positions = np.arange(config.model.n_ctx)
    expected = {"step": steps, "tokens": steps * config.tokens_per_step, "position": positions}
    yield from _axis_problems(record, where, expected)
    if config.members:
        yield from _axis_problems(
            record, where, {"member": np.arange(len(config.members)), **member_coordinates(config)}
        )
    yield from _intervention_problems(record, run)
    is_bad = ~np.isfinite(record["loss"].values).all(axis=-1)
    if config.members:
        is_bad = (is_bad & np.isfinite(record["lr"].values)).any(axis=1)
    bad = np.flatnonzero(is_bad)
    if len(bad):
        yield f"{where}: the loss of step {bad[0]} is not finite ({len(bad)} such steps)"
    yield from _probe_problems(record, run, state_step)


def _intervention_problems(record: "xr.Dataset", run: RunDir) -> Iterator[str]:
    """Where the record says that an intervention was on, or off, and the config and the probes say otherwise.

    A branch's steps of before it are its parent's.
    """
    config, where = run.config, run.root / "record.zarr"
    if not config.intervene:
        return
    branch = run.environment.get("branch", {})
    begun = 0 if branch.get("anew") else branch.get("step", 0)
    steps = record["step"].values
    for k in range(len(config.members) or 1):
        member = config.member(k) if config.members else config
        own = record.isel(member=k) if config.members else record
        first = (
            first_seen(own["probe_step"].values, own["prefix_matching"].values) if "prefix_matching" in own else None
        )
        expected = are_on(member, steps, None if first is None else first[0])
        is_bad = (own[INTERVENED].values != expected).any(axis=1) & (steps >= begun) & np.isfinite(own["lr"].values)
        if is_bad.any():
            step = int(steps[np.argmax(is_bad)])
            yield f"{where}: {INTERVENED} at step {step} is not what the config says ({int(is_bad.sum())} such steps)"


def _held_out_problems(run: RunDir, tally: Tally) -> Iterator[str]:
    members = run.config.rows_of_members
    for k in range(max(members, default=0) + 1):
        one = run.member(members.index(k)) if members else run
        try:
            yield from _rows_problems(one, tally)
        except UserError as error:
            yield str(error)


def _rows_problems(run: RunDir, tally: Tally) -> Iterator[str]:
    held_out = run.load_held_out(tally)
    where, model = run.held_out_path, run.config.model
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
    where, n_recorded = run.root / "record.zarr", record.sizes["probe"]
    n_promised = int(np.sum(steps < promised_end(run.config, state_step)))
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
    has_failed = np.zeros((n_recorded, 0), bool)
    if run.config.members:  # what is there of one of a member's scores is there of all
        has_failed = np.isnan(record["icl_score"].values)
    for name in names:
        values = record[name].values
        is_bad = ~np.isfinite(values).all(axis=tuple(range(1 + bool(run.config.members), values.ndim)))
        bad = np.flatnonzero((is_bad & ~has_failed).any(axis=1) if run.config.members else is_bad)
        if len(bad):
            yield f"{where}: {name} of the probe at step {steps[bad[0]]} is not finite ({len(bad)} such probes)"


def _snapshot_problems(run: RunDir, entries: list[SnapshotEntry], tally: Tally) -> Iterator[str]:
    folder = run.root / "snapshots"
    by_hash = {entry.sha256: entry.step for entry in entries}
    for entry in entries:
        path, tokens = folder / str(entry.step), entry.step * run.config.tokens_per_step
        if entry.tokens != tokens and run.imported is None:
            yield f"{run.manifest.path}: step {entry.step}: tokens = {entry.tokens}: the config says {tokens}"
        try:
            params = run.open_params(entry)
            found = snapshot_sha256(params, entry)
        except UserError as error:
            yield str(error)
            continue
        n_bytes = sum(array.nbytes for array in params.values())
        if found == entry.sha256 and n_bytes != entry.n_bytes:
            yield f"{run.manifest.path}: step {entry.step}: n_bytes = {entry.n_bytes}: the snapshot has {n_bytes}"
        elif found != entry.sha256 and found in by_hash:
            yield f"{path}: swapped: it holds the parameters of step {by_hash[found]}"
        elif found != entry.sha256:
            yield f"{path}: its parameters have changed: SHA-256 {found[:12]}, the manifest says {entry.sha256[:12]}"
        tally.n_snapshots += 1


def _state_problems(run: RunDir, tally: Tally) -> Iterator[str]:
    try:
        expected = {entry.step: entry for entry in run.manifest.read()}
    except UserError:  # said above
        expected = {}
    for step in saved_steps(run.root / "state"):
        path = run.root / "state" / str(step)
        try:
            state = run.load_state(step)
        except UserError as error:
            yield str(error)
            continue
        params = {name.removeprefix("params."): array for name, array in state.items() if name.startswith("params.")}
        if step in expected and expected[step].sha256 != snapshot_sha256(params, expected[step]):
            yield f"{path}: its parameters are not those of the snapshot of step {step}"
        tally.n_states += 1


def _analysis_problems(run: RunDir, tally: Tally) -> Iterator[str]:
    for k in range(len(run.config.members)):
        if run.member(k).path.exists():
            yield from _analysis_problems(run.member(k), tally)
    path, parts = run.path / "analysis.zarr", run.path / "analysis_parts"
    if path.exists():
        yield from (f"{problem}; icl-jax analyze makes it anew" for problem in seal_problems(path, tally))
        if path.name in tally.unsealed:
            import xarray as xr

            with unusable(path, "cannot read the analysis"):
                xr.open_zarr(str(path), consolidated=True).load()
    for name in files_under(parts) if parts.exists() else ():
        if name.endswith(".npz") and not name.rpartition("/")[2].startswith("."):
            try:
                with zipfile.ZipFile(io.BytesIO((parts / name).read_bytes())) as file:
                    is_whole = file.testzip() is None
            except (OSError, EOFError, zipfile.BadZipFile):
                is_whole = False
            if not is_whole:
                yield f"{parts / name}: damaged; icl-jax analyze takes its measurements anew"


def _origin_problems(run: RunDir, entries: list[SnapshotEntry]) -> Iterator[str]:
    """Of an imported run: each snapshot must say what files it is from, and follow the others in tokens."""
    if run.imported is None:
        return
    known = run.imported.get("snapshots", {})
    for before, entry in zip([None, *entries], entries, strict=False):
        if not known.get(str(entry.step), {}).get("files"):
            yield f"{run.path / 'environment.json'}: does not say what files the snapshot of step {entry.step} is from"
        if before is not None and entry.tokens < before.tokens:
            less = f"tokens = {entry.tokens}: less than those of step {before.step}"
            yield f"{run.manifest.path}: step {entry.step}: {less}"
