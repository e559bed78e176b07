"""How fast models learn, in the logarithm of tokens, and where the order of models turns over.

``d loss / d ln(tokens)``, nats, negative while the model learns. Before the phase change the loss of small models falls
more slowly than that of large ones, after it faster: the order is inverted.
Source: Olsson et al. 2022, "Unexplained curiosities", loss derivative inversion. Grid and smoothing are ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.maths.steepest_fall import smooth
from icl_jax.measures.measurement import Context, Derived, UndefinedError, Variable

_N_GRID = 60
_SMOOTHING = 5


class LossDerivatives(NamedTuple):
    """Derivatives of several models' losses on one grid."""

    tokens: Float[np.ndarray, " G"]
    derivative: Float[np.ndarray, "model G"]
    """d loss / d ln(tokens), nats."""
    rank: Float[np.ndarray, " G"]
    """Rank correlation of a model's place in the list with its derivative: -1 where later models (put the larger ones
    later) learn faster, +1 where they learn more slowly; NaN with fewer than two models."""
    inversions: Float[np.ndarray, " I"]
    """Tokens at which `rank` crosses from negative to positive."""


def derivative_by_log_tokens(
    tokens: Real[np.ndarray, " S"], loss: Float[np.ndarray, " S"], grid: Float[np.ndarray, " G"]
) -> Float[np.ndarray, " G"]:
    """d loss / d ln(tokens) at the points of `grid`, which must be geometric; step 0 (0 tokens) is left out."""
    is_later = np.asarray(tokens) > 0
    log_tokens = np.log(np.asarray(tokens, np.float64)[is_later])
    curve = np.interp(np.log(grid), log_tokens, np.asarray(loss, np.float64)[is_later])
    return np.gradient(smooth(curve, _SMOOTHING, is_symmetric=True), np.log(grid))


def loss_derivatives(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> LossDerivatives:
    """Of (tokens, loss) of several models, the smallest first, over the tokens that all of them have."""
    first = max(float(np.min(tokens[np.asarray(tokens) > 0])) for tokens, _ in curves)
    last = min(float(np.max(tokens)) for tokens, _ in curves)
    if not first < last:
        raise ValueError(f"the models have no stretch of training in common: {first=} is not before {last=}")
    grid = np.geomspace(first, last, _N_GRID)
    derivative = np.stack([derivative_by_log_tokens(tokens, loss, grid) for tokens, loss in curves])
    rank = _rank_correlation(derivative)
    sign = np.sign(rank)
    crossing = np.flatnonzero((sign[:-1] < 0) & (sign[1:] > 0))
    return LossDerivatives(grid, derivative, rank, grid[crossing + 1])


def _rank_correlation(values: Float[np.ndarray, "model G"]) -> Float[np.ndarray, " G"]:
    """Kendall's tau of the order of models with the values: share of pairs that rise less share that fall."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1], np.nan)
    a, b = np.triu_indices(n, k=1)
    return np.sign(values[b] - values[a]).mean(axis=0)


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    tokens, loss = dataset["tokens"].values, dataset["loss_by_position"].values.mean(axis=1)
    if np.sum(tokens > 0) < 2:
        raise UndefinedError("a derivative takes two snapshots or more after step 0")
    found = loss_derivatives([(tokens, loss)])
    return {"log_tokens_grid": found.tokens, "loss_by_log_tokens": found.derivative[0].astype(np.float32)}


DERIVED = Derived(
    name="loss_by_log_tokens",
    source="Olsson et al. 2022, Unexplained curiosities",
    needs=("loss_by_position",),
    variables={
        "log_tokens_grid": Variable(("log_grid",), "1", "training tokens at the points of loss_by_log_tokens"),
        "loss_by_log_tokens": Variable(
            ("log_grid",), "nats", "d held-out loss / d ln(training tokens); negative: it learns"
        ),
    },
    derive=derive,
)
