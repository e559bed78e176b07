"""What a run's record holds that analysis and report derive from: the learning rate, and curves at the live probes."""

import numpy as np
import xarray as xr

from icl_jax.measures.measurement import Recorded
from icl_jax.rundir import RunDir
from icl_jax.rundir.record import HEAD_SCORES, record_of_member


def recorded_of(run: RunDir) -> Recorded | None:
    """None for an imported run and for one whose record has no steps yet."""
    return None if run.imported is not None else _recorded(run.load_record())


def recorded_of_members(run: RunDir) -> list[Recorded | None]:
    """`recorded_of` of each member of a run with members, from one reading."""
    record = run.load_record()
    return [_recorded(record_of_member(record, k)) for k in range(len(run.config.members))]


def _recorded(record: xr.Dataset) -> Recorded | None:
    if not record.sizes["step"]:
        return None
    schedule = record["tokens"].values, record["lr"].values
    if "icl_windowed" not in record:
        return Recorded(schedule, np.zeros(0), np.zeros(0))
    return Recorded(
        schedule,
        record["probe_tokens"].values,
        record["icl_windowed"].values.astype(np.float64),
        record["held_out_loss"].values.mean(axis=1, dtype=np.float64),
        {name: record[name].values for name in HEAD_SCORES if name in record},
    )
