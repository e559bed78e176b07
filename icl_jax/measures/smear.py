"""How much of its own key each smeared head uses: sigmoid(alpha).

``k_j <- s k_j + (1 - s) k_(j-1)`` with s = sigmoid(alpha). Range (0, 1): 1 is standard attention, 0 moves all keys one
to the right, 0.5 is where training starts. Source: Olsson et al. 2022, Argument 2; the curve over training is ours.
"""

import numpy as np

from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable


def measure(_context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
    alpha = params["smear_alpha"].astype(np.float64)
    return {"smear_own": (1 / (1 + np.exp(-alpha))).astype(np.float32)}


def why_not(context: Context) -> str | None:
    if not context.config.model.n_layers:
        return "the model has no layers, so it has no heads"
    return None if context.config.model.smeared_keys else "model.smeared_keys = false: keys are not smeared"


MEASUREMENT = Measurement(
    name="smear",
    source="Olsson et al. 2022, Argument 2",
    variables={"smear_own": Variable(("layer", "head"), "1", "share of its own key in a smeared key; (0, 1)")},
    finish=measure,
    why_not=why_not,
)
