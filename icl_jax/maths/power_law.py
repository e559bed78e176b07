"""When something happens as a power of what is varied: time = scale x value ** exponent, times right-censored.

The logarithm of a member's time is normal about a line in the logarithm of the value, with one spread for all
(log-normal times; Tobin 1958 for those that are known to be later only). Fitted by maximum likelihood with EM: what is
censored counts as its mean beyond where it was last seen, given the line. Intervals are 95 %, by bootstrap over the
members of each value. A power law is tested against a mean of its own for each value, by the ratio of likelihoods:
a low p-value refutes it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy.special import log_ndtr
from scipy.stats import chi2

_N_DRAWS = 1000
_MOST_TURNS = 500
_TURNS_TOLERANCE = 1e-7
_LEVEL = 0.95
_LEAST_SPREAD = 1e-6


class PowerLaw(NamedTuple):
    """A law fitted to times, with the ends of the 95 % interval of its exponent."""

    scale: float
    exponent: float
    low: float
    high: float
    spread: float
    """Standard deviation of the logarithm of a member's time about the law."""
    p_value: float
    """Chance of means so far from a line in logarithms were they on one; NaN for two values."""


def fit_power_law(
    values: Real[np.ndarray, " member"], times: Real[np.ndarray, " member"],
    has_changed: Bool[np.ndarray, " member"], *, seed: int = 0,
) -> PowerLaw:  # fmt: skip
    """`values`: what was varied, `times`: of each member's change, or where it was last seen without one; all above 0.

    Raises ValueError where changes were seen at fewer than two values.
    """
    x, y = np.log(np.asarray(values, np.float64)), np.log(np.asarray(times, np.float64))
    if len(np.unique(x[has_changed])) < 2:
        raise ValueError("changes must have been seen at two values or more")
    levels, group = np.unique(x, return_inverse=True)
    line = np.column_stack([np.ones_like(x), x])
    coefficients, spread = _tobit(line[None], y[None], has_changed[None])
    rng = np.random.default_rng(seed)
    pick = np.empty((_N_DRAWS, len(x)), int)
    for level in range(len(levels)):
        members = np.flatnonzero(group == level)
        pick[:, members] = rng.choice(members, (_N_DRAWS, len(members)))
    drawn, _ = _tobit(line[pick], y[pick], has_changed[pick])
    # A draw in which fewer than two values have a change tells nothing of the slope.
    is_told = np.array([len(np.unique(x[row][has_changed[row]])) >= 2 for row in pick])
    low, high = np.quantile(drawn[is_told, 1], [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    p_value = float("nan")
    if len(levels) > 2:
        # Of a value without any change no mean is the likeliest: it lies beyond all bounds, and says nothing here.
        seen = np.isin(group, np.unique(group[has_changed]))
        own = np.eye(len(levels))[group[seen]][:, np.unique(group[seen])]
        of_line = _log_likelihood(line[seen], y[seen], has_changed[seen])
        of_means = _log_likelihood(own, y[seen], has_changed[seen])
        n_free = own.shape[1] - 2
        p_value = float(chi2.sf(2 * max(of_means - of_line, 0.0), n_free)) if n_free else float("nan")
    return PowerLaw(
        float(np.exp(coefficients[0, 0])), float(coefficients[0, 1]), float(low), float(high), float(spread[0]), p_value
    )


def _tobit(
    design: Float[np.ndarray, "draw member p"], y: Float[np.ndarray, "draw member"],
    is_seen: Bool[np.ndarray, "draw member"],
) -> tuple[Float[np.ndarray, "draw p"], Float[np.ndarray, " draw"]]:  # fmt: skip
    """Coefficients and spread of normal errors where y is known, or known to be higher, for each draw."""
    inverse = np.linalg.pinv(design)
    expected, variance = y.copy(), np.zeros_like(y)
    coefficients = np.einsum("dpm,dm->dp", inverse, expected)
    spread = np.full(len(y), 1.0)
    for _ in range(_MOST_TURNS):
        mean = np.einsum("dmp,dp->dm", design, coefficients)
        spread = np.sqrt(np.maximum(np.mean((expected - mean) ** 2 + variance, axis=1), _LEAST_SPREAD**2))
        if is_seen.all():
            break
        # Mean and variance of a normal number beyond y (Johnson, Kotz and Balakrishnan 1994).
        z = (y - mean) / spread[:, None]
        hazard = np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(-z))
        expected = np.where(is_seen, y, mean + spread[:, None] * hazard)
        variance = np.where(is_seen, 0.0, spread[:, None] ** 2 * np.maximum(1 + z * hazard - hazard**2, 0))
        moved = np.einsum("dpm,dm->dp", inverse, expected)
        is_still = np.max(np.abs(moved - coefficients)) < _TURNS_TOLERANCE
        coefficients = moved
        if is_still:
            break
    return coefficients, spread


def _log_likelihood(
    design: Float[np.ndarray, "member p"], y: Float[np.ndarray, " member"], is_seen: Bool[np.ndarray, " member"]
) -> float:
    """Of the likeliest normal errors."""
    coefficients, spread = _tobit(design[None], y[None], is_seen[None])
    z = (y - design @ coefficients[0]) / spread[0]
    seen = -0.5 * z**2 - np.log(spread[0]) - 0.5 * np.log(2 * np.pi)
    return float(np.where(is_seen, seen, log_ndtr(-z)).sum())
