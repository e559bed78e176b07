"""One member of a run with members as a run directory of its own."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax.config import UserError
from icl_jax.rundir.files import is_bucket
from icl_jax.rundir.record import HEAD_SCORES, INTERVENED, PROBE_SCALARS, ProbeResult, StepBlock
from icl_jax.rundir.run import RunDir

_STEPS_AT_A_TIME = 4096


def split(member: RunDir, path: str) -> RunDir:
    """Write what a view of a member holds as a run: that which the member would have been alone, bit for bit.

    Its last state comes along, so that it can be resumed, unless the member has failed before. The folder appears when
    it is complete; in a bucket a killed split leaves a part of it. Raises UserError where the folder holds something or
    cannot be written, and where the run is damaged.
    """
    if RunDir.is_run(path):
        raise UserError(f"{path}: is a run already: --run must be an empty folder or a new path")
    RunDir.check_free(path)
    if is_bucket(path):
        return _write(member, path)
    partial = Path(f"{path.rstrip('/')}.partial")
    try:
        if partial.exists():
            shutil.rmtree(partial)
        _write(member, str(partial))
        if Path(path).exists():
            Path(path).rmdir()  # empty, or it would have been refused
        partial.rename(path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the run directory: {error.strerror or error}") from error
    return RunDir.open(path)


def _write(member: RunDir, path: str) -> RunDir:
    record = member.load_record()
    new = RunDir.create(
        path,
        member.config,
        corpus_sha256=member.corpus_sha256,
        tokenizer_json=member.read_tokenizer(),
        record_attributes={name: value for name, value in record.attrs.items() if name != "schema_version"},
        held_out=member.load_held_out(),
    )
    writer = new.open_record()
    for first in range(0, record.sizes["step"], _STEPS_AT_A_TIME):
        part = record.isel(step=slice(first, first + _STEPS_AT_A_TIME))
        names = ("loss", "lr", "grad_norm", "step_s", *([INTERVENED] if INTERVENED in record else []))
        columns = {name: part[name].values for name in names}
        writer.write_steps(StepBlock(first_step=first, **columns))
    no_heads = np.zeros((0, member.config.model.n_heads), np.float32)
    for i, step in enumerate(record["probe_step"].values.tolist() if "probe_step" in record else ()):
        heads = {name: record[name].values[i] if name in record else no_heads for name in HEAD_SCORES}
        scalars = {name: record[name].values[i] if name in record else np.float32("nan") for name in PROBE_SCALARS}
        found: dict[str, Any] = {"held_out_loss": record["held_out_loss"].values[i]} | scalars | heads
        writer.write_probe(ProbeResult(step=step, **found))
    for entry in member.read_snapshots():
        params, sha256 = member.read_params(entry)
        if sha256 != entry.sha256:
            member.load_params(entry.step)  # says what is wrong
        new.save_snapshot(entry.step, params, entry.tokens)
    state_step = member.last_state_step()
    if state_step is not None and state_step <= record.sizes["step"]:
        new.save_state(state_step, member.load_state(state_step))
    new.environment["starts"] = member.environment["starts"]
    new.environment["split_from"] = {"run_id": member.environment["run_id"], "member": member.index}
    new.save_environment()
    return new
