"""Whether a behaviour is learned abruptly, and where: the changes of the probability of each label's right tokens.

As `phase_change`, on `label_prob` at the snapshots: changes upwards of 0.05 and more. The chance of a change in a
smooth curve, 0.03, is for all labels of the run together. Source: ours.
"""

import numpy as np
import xarray as xr

from icl_jax.maths.finding import arrays_of, find_changes
from icl_jax.measures.measurement import Context, Derived, Variable
from icl_jax.measures.phase_change import change_variables

_PREFIX = "label_change"


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    schedule = None if context.recorded is None else context.recorded.schedule
    tokens, curves = dataset["tokens"].values, dataset["label_prob"].values.astype(np.float64).T
    findings = [find_changes(tokens, curve, schedule=schedule, direction=1, n_tests=len(curves)) for curve in curves]
    return {f"{_PREFIX}_{name}": values for name, values in arrays_of(findings).items()}


def _variables() -> dict[str, Variable]:
    return change_variables(_PREFIX, ("label",), "1", "the probability of the right token")


DERIVED = Derived(
    name="label_changes", source="ours", needs=("label_prob",), variables=_variables(), derive=derive,
)  # fmt: skip
