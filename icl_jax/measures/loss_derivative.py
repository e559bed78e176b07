"""How much each further token of context helps: the derivative of the loss with respect to ln(token index).

Indexes 1..T are cut into geometric bins; the loss is averaged in each (single positions are noise: sd about 3 nats
over the root of the number of rows) and centred differences are taken between bins, in ln(bin centre).
Negative: the loss improves with context. Before the phase change about 0 beyond index 50; after it negative to the end.
Source: Olsson et al. 2022, Model Analysis Table, "Derivative of loss with respect to context index"; the bins are ours.
"""

from itertools import pairwise

import numpy as np
import xarray as xr
from jaxtyping import Float

from icl_jax.measures.measurement import Context, Derived, Variable

_N_BINS = 24


def index_bins(n_ctx: int, n_bins: int = _N_BINS) -> list[tuple[int, int]]:
    """Half-open ranges of positions whose token indexes (position + 1) are spaced geometrically; none is empty."""
    edges = np.unique(np.round(np.geomspace(1, n_ctx + 1, min(n_bins, n_ctx) + 1)).astype(int))
    return [(int(a) - 1, int(b) - 1) for a, b in pairwise(edges)]


def derivative_by_log_index(
    loss: Float[np.ndarray, "S T"], n_bins: int = _N_BINS
) -> tuple[Float[np.ndarray, " bin"], Float[np.ndarray, "S bin"]]:
    """Geometric centres of the bins, as token indexes, and d loss / d ln(index) in each, nats. Needs 2 bins or more."""
    bins = index_bins(loss.shape[1], n_bins)
    centre = np.array([np.exp(np.mean(np.log(np.arange(a + 1, b + 1)))) for a, b in bins])
    binned = np.stack([loss[:, a:b].mean(axis=1) for a, b in bins], axis=1)
    return centre, np.gradient(binned.astype(np.float64), np.log(centre), axis=1)


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    centre, derivative = derivative_by_log_index(dataset["loss_by_position"].values)
    return {"bin_index": centre, "loss_derivative": derivative.astype(np.float32)}


DERIVED = Derived(
    name="loss_derivative",
    source="Olsson et al. 2022, Model Analysis Table",
    needs=("loss_by_position",),
    variables={
        "bin_index": Variable(("bin",), "1", "token index at the (geometric) centre of the bin"),
        "loss_derivative": Variable(("snapshot", "bin"), "nats", "d loss / d ln(token index); negative: context helps"),
    },
    derive=derive,
)
