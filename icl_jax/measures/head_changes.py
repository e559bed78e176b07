"""Whether a head forms abruptly, and where: the changes of each head's scores.

As `phase_change`, upwards from 0.05 on, of prefix matching and attention to the token before (at the probes where those
are more than the snapshots) and of the copying score of the eigenvalues. Many heads are looked at: the chance of a
change in a smooth curve, 0.03, is for all heads and scores of the run together (Bonferroni). A score that moves by less
than 0.05 has no change that matters, so it is not tested: its p-value is 1. Source: ours.
"""

import numpy as np
import xarray as xr

from icl_jax.maths.change_point import FEWEST
from icl_jax.maths.finding import LEAST, Finding, arrays_of, find_changes
from icl_jax.measures.curves import SCORES, head_curves
from icl_jax.measures.measurement import Context, Derived
from icl_jax.measures.phase_change import change_variables

_PREFIX = "head_change"
_DIMS = ("score", "layer", "head")


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    schedule = None if context.recorded is None else context.recorded.schedule
    scores = [head_curves(context.recorded, dataset, score) for score in SCORES]
    shape = (len(scores), *scores[0].values.shape[1:])
    n_tests = int(np.prod(shape))

    def find(tokens: np.ndarray, curve: np.ndarray) -> Finding:
        if len(curve) >= FEWEST and np.ptp(curve) < LEAST:
            return Finding((), 1.0)
        return find_changes(tokens, curve, schedule=schedule, direction=1, n_tests=n_tests)

    heads = list(np.ndindex(shape[1:]))
    findings = [find(curve.tokens, curve.values[(slice(None), *head)]) for curve in scores for head in heads]
    found = arrays_of(findings)
    return {f"{_PREFIX}_{name}": values.reshape(*shape, *values.shape[1:]) for name, values in found.items()}


DERIVED = Derived(
    name="head_changes", source="ours", needs=tuple(SCORES),
    variables=change_variables(_PREFIX, _DIMS, "1", f"the head's score: {', '.join(SCORES)}"), derive=derive,
)  # fmt: skip
