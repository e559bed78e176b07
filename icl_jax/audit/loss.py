"""Steps whose held-out loss stands out, where it has been measured."""

import numpy as np
from jaxtyping import Float, Int

from icl_jax.audit.finding import Finding

LEAST_NATS = 0.2
"""Less is no fault of the weights. Clean runs: up to 0.04."""
TIMES = 5.0
"""The median change from one snapshot to the next, of the eleven around. Clean runs: up to 4.7, of 0.015 nats."""
_AROUND = 5


def judge_loss(steps: Int[np.ndarray, " S"], loss: Float[np.ndarray, " S"]) -> list[Finding]:
    """Steps whose loss (nats) is above that of the snapshots before and after, or, of the last, above the one before.

    By LEAST_NATS, and by TIMES the median change between the snapshots around.
    """
    findings = []
    for s in range(1, len(loss)):
        beside = loss[[s - 1, s + 1]] if s + 1 < len(loss) else loss[[s - 1]]
        around = np.delete(loss[max(0, s - _AROUND) : s + _AROUND + 1], min(s, _AROUND))
        excess, usual = (
            float(loss[s] - beside.max()),
            float(np.median(np.abs(np.diff(around)))) if len(around) > 1 else 0,
        )
        if not np.isfinite(loss[s]):
            findings.append(Finding(steps=(int(steps[s]),), kind="loss", said="is not finite"))
        elif excess > max(LEAST_NATS, TIMES * usual):
            said = f"{loss[s]:.2f} nats, {excess:.2f} above the snapshots beside it; {usual:.3f} is a usual change"
            findings.append(Finding(steps=(int(steps[s]),), kind="loss", said=said))
    return findings
