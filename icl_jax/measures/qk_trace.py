"""Trace of the QK eigenvalues of the previous-token term: does a head look for its token in what stood before it?

For head (l, h) with earlier heads e and their previous-token scores p_e (row vectors; query side straight from the
embedding, key side through e; rotary positions at distance 0, smearing and biases left out):

    W = sum over e of p_e W_E W_QK (W_E W_OV^e)^T / sqrt(d_head)      [query token, key token]

The trace sums, over tokens v, the attention score that v at the query gives to a position whose predecessor was v: it
is large for an induction head, and 0 up to noise for a random one. Only E by E matrices are formed.
Source: Olsson et al. 2022, model analysis table, "Trace of QK eigenvalues". Departure: divided by sqrt(d_head), so that
it is in units of attention scores in a model without norms; norm weights are folded in and scales taken as 1.
The normalised form, sum of the eigenvalues over the sum of their absolute values, is that of Elhage et al. 2021,
"Checking the mechanistic theory"; |value| < 0.1 for random heads of d_head 64, < 0.35 for 16.
"""

import math

import numpy as np
from jaxtyping import Array, Complex, Float

from icl_jax.maths.factored_matrix import FactoredMatrix, eigenvalue_sum_ratio
from icl_jax.measures.circuits import fold_norms, without_mlps
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_plain_keys
from icl_jax.measures.snapshot import Snapshot


def previous_token_eigenvalues(
    W_E: Float[np.ndarray, "*S V D"],
    W_Q: Float[np.ndarray, "*S N H D E"],
    W_K: Float[np.ndarray, "*S N H D E"],
    W_V: Float[np.ndarray, "*S N H D E"],
    W_O: Float[np.ndarray, "*S N H E D"],
    previous: Float[np.ndarray, "*S N H"],
) -> Complex[np.ndarray, "*S N H E"]:
    """Eigenvalues of W that can differ from zero; NaN in layer 0, whose heads have none before them."""
    W_E, W_Q, W_K, W_V, W_O = (np.asarray(weight, np.float64) for weight in (W_E, W_Q, W_K, W_V, W_O))
    gram = W_E.mT @ W_E
    earlier = np.zeros_like(gram)  # of all heads before the layer
    eigenvalues = np.full(W_Q.shape[:-2] + W_Q.shape[-1:], np.nan, np.complex128)
    for layer in range(1, W_Q.shape[-4]):
        # W = (W_E W_Q) (W_K^T earlier^T W_E^T): the cyclic product is E by E.
        weight_HDE = previous[..., layer - 1, :, None, None] * W_V[..., layer - 1, :, :, :]
        earlier = earlier + np.einsum("...hde,...hef->...df", weight_HDE, W_O[..., layer - 1, :, :, :], optimize=True)
        to_query = (earlier.mT @ gram)[..., None, :, :] / math.sqrt(W_Q.shape[-1])
        small = FactoredMatrix(W_K[..., layer, :, :, :].mT @ to_query, W_Q[..., layer, :, :, :])
        eigenvalues[..., layer, :, :] = small.eigenvalues()
    return eigenvalues


def look(at: Snapshot) -> dict[str, Array]:
    """Previous-token scores of all layers that another one comes after; 0 for the last, which none reads."""
    return {"score": at.attention_on_text["previous_token"].at[-1].set(0)}


def finish(context: Context, params: StackedParams, seen: Arrays) -> Arrays:
    config = context.config.model
    weights = fold_norms(without_mlps(params), config)
    previous = seen["score"].astype(np.float64)
    W_E, W_Q, W_K, W_V, W_O = (weights[name] for name in ("W_E", "W_Q", "W_K", "W_V", "W_O"))
    eigenvalues = previous_token_eigenvalues(W_E, W_Q, W_K, W_V, W_O, previous)
    ratio = np.full(eigenvalues.shape[:-1], np.nan)
    ratio[:, 1:] = eigenvalue_sum_ratio(eigenvalues[:, 1:])
    return {"qk_trace": eigenvalues.sum(axis=-1).real, "qk_trace_ratio": ratio}


def _why_not(context: Context) -> str | None:
    if context.config.model.n_layers < 2:
        return f"the term goes through a head in an earlier layer; model.n_layers = {context.config.model.n_layers}"
    return needs_plain_keys(context)


_HEAD = ("layer", "head")
_MISSING = "heads in layer 0 have no earlier head to read"

MEASUREMENT = Measurement(
    name="qk_trace",
    source="Olsson et al. 2022, Trace of QK eigenvalues; Elhage et al. 2021, Checking the mechanistic theory",
    variables={
        "qk_trace": Variable(
            _HEAD, "1", "score to positions whose predecessor was the query's token, summed over tokens", _MISSING
        ),
        "qk_trace_ratio": Variable(
            _HEAD, "1", "sum of the same term's eigenvalues over the sum of their sizes; [-1, 1]", _MISSING
        ),
    },
    look=look,
    finish=finish,
    why_not=_why_not,
)  # fmt: skip
