"""What a run's record holds that analysis and report derive from: the learning rate, and curves at the live probes."""

import numpy as np

from icl_jax.measures.measurement import Recorded
from icl_jax.rundir import RunDir
from icl_jax.rundir.record import HEAD_SCORES


def recorded_of(run: RunDir) -> Recorded | None:
    """None for an imported run and for one whose record has no steps yet."""
    if run.imported is not None:
        return None
    record = run.load_record()
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
