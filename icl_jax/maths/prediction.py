"""Whether numbers known before tell one known after: rank correlation, and linear prediction of who is left out.

P-values are by permutation, two-sided; intervals are 95 %, by bootstrap over members.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real
from scipy.stats import rankdata

FEWEST = 10
"""Members that a prediction is tried of."""
_N_PERMUTATIONS = 9999
_N_DRAWS = 2000


class Correlation(NamedTuple):
    """Spearman's."""

    rho: float
    low: float
    high: float
    p_value: float


class Prediction(NamedTuple):
    """How much of the variance is predicted."""

    r2: float
    """1 - squared errors of each member, predicted from the others / those of the others' mean; below 0: worse."""
    p_value: float
    """Chance of so much were the members' numbers unrelated."""


def rank_correlation(x: Real[np.ndarray, " member"], y: Real[np.ndarray, " member"], *, seed: int = 0) -> Correlation:
    """NaN where one of the two is constant or there are fewer than four members."""
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(*[float("nan")] * 4)
    rng = np.random.default_rng(seed)
    rho = float(_pearson(rankdata(x)[None], rankdata(y)[None])[0])
    permuted = rng.permuted(np.tile(rankdata(y), (_N_PERMUTATIONS, 1)), axis=1)
    n_beyond = int(np.sum(np.abs(_pearson(rankdata(x)[None], permuted)) >= abs(rho) - 1e-12))
    pick = rng.integers(0, len(x), (_N_DRAWS, len(x)))
    drawn = _pearson(rankdata(x[pick], axis=1), rankdata(y[pick], axis=1))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Correlation(rho, float(low), float(high), (1 + n_beyond) / (1 + _N_PERMUTATIONS))


def _pearson(x: Float[np.ndarray, "#draw member"], y: Float[np.ndarray, "#draw member"]) -> Float[np.ndarray, " draw"]:
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(axis=1) / np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))


def leave_one_out(
    predictors: Float[np.ndarray, "member predictor"], y: Real[np.ndarray, " member"], *, seed: int = 0
) -> Prediction:
    """Least squares on the predictors and a constant. NaN with fewer than ten members, or three for each predictor."""
    n, n_predictors = predictors.shape
    if n < max(FEWEST, 3 * n_predictors):
        return Prediction(float("nan"), float("nan"))
    spread = predictors.std(axis=0)
    design = np.column_stack([np.ones(n), (predictors - predictors.mean(axis=0)) / np.where(spread > 0, spread, 1)])
    hat = design @ np.linalg.pinv(design)
    left_out = np.maximum(1 - np.diag(hat), 1e-9)

    def r2(values: Float[np.ndarray, "draw member"]) -> Float[np.ndarray, " draw"]:
        errors = (values - values @ hat.T) / left_out
        of_mean = (values - values.mean(axis=1, keepdims=True)) * n / (n - 1)
        return np.asarray(1 - (errors**2).sum(axis=1) / (of_mean**2).sum(axis=1))

    found = float(r2(np.asarray(y, np.float64)[None])[0])
    permuted = np.random.default_rng(seed).permuted(np.tile(np.asarray(y, np.float64), (_N_PERMUTATIONS, 1)), axis=1)
    return Prediction(found, (1 + int(np.sum(r2(permuted) >= found - 1e-12))) / (1 + _N_PERMUTATIONS))
