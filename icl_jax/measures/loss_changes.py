"""Whether the loss falls abruptly somewhere: `phase_change` of the mean loss of held-out tokens.

At the live probes where those are more than the snapshots. Source: ours.
"""

import numpy as np
import xarray as xr

from icl_jax.maths.finding import arrays_of, find_changes
from icl_jax.measures.curves import loss_curve
from icl_jax.measures.measurement import Context, Derived
from icl_jax.measures.phase_change import change_variables

_PREFIX = "loss_change"


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    schedule = None if context.recorded is None else context.recorded.schedule
    finding = find_changes(*loss_curve(context.recorded, dataset), schedule=schedule, direction=-1)
    return {f"{_PREFIX}_{name}": np.asarray(values[0]) for name, values in arrays_of([finding]).items()}


DERIVED = Derived(
    name="loss_changes", source="ours", needs=("loss_by_position",),
    variables=change_variables(_PREFIX, (), "nats", "the mean held-out loss"), derive=derive,
)  # fmt: skip
