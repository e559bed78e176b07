"""Q-, K- and V-composition: how much of what a head reads was written by an earlier head.

For head 1 in an earlier layer than head 2 (row vectors), with Frobenius norms:

- Q: ``|W_OV1 W_QK2| / |W_OV1| |W_QK2|``; K: the same with W_QK2 transposed; V: ``|W_OV1 W_OV2| / |W_OV1| |W_OV2|``.

Range [0, 1]. Two random heads score about 1/sqrt(d_model), whatever d_head, so the paper subtracts what random matrices
of the same shapes score on average; most heads of a trained model lie below it. A perfectly aligned pair of flat
spectrum and rank r scores 1/sqrt(r): 0.125 for d_head 64, where the baseline at d_model 768 is 0.036.

Source: Elhage et al. 2021, "Two-layer attention-only transformers: composition", by the transposed formulas of
TransformerLens `all_composition_scores`, which neither subtracts a baseline nor marks undefined pairs. Do not compare
with the figure first published: the paper's own note says that a bug was behind it.
Departures: norm weights are folded in (`fold_norms`); pairs whose product is zero because one head is score 0.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from icl_jax.measures.circuits import fold_norms, heads_alone
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable

N_BASELINE_DRAWS = 200


class Composition(NamedTuple):
    """Scores of all pairs, [..., earlier layer, its head, later layer, its head]; NaN where the layer is not later."""

    q: Float[np.ndarray, "*S N H N H"]
    k: Float[np.ndarray, "*S N H N H"]
    v: Float[np.ndarray, "*S N H N H"]


class Baseline(NamedTuple):
    """What pairs of random heads score."""

    mean: float
    sd: float
    """Spread of a single pair, which z-scores divide by."""
    sem: float
    """Standard error of the mean."""


def composition_scores(
    W_Q: Float[np.ndarray, "*S N H D E"],
    W_K: Float[np.ndarray, "*S N H D E"],
    W_V: Float[np.ndarray, "*S N H D E"],
    W_O: Float[np.ndarray, "*S N H E D"],
) -> Composition:
    """Raw scores, the baseline not subtracted. Only E by E matrices are formed: see `_product_norm`."""
    W_Q, W_K, W_V, W_O = (np.asarray(weight, np.float64) for weight in (W_Q, W_K, W_V, W_O))
    n_layers, n_heads = W_Q.shape[-4:-2]
    inner_Q, inner_K, inner_V = (weight.mT @ weight for weight in (W_Q, W_K, W_V))
    outer_O = W_O @ W_O.mT
    qk_norm, ov_norm = _trace_norm(inner_Q, inner_K), _trace_norm(inner_V, outer_O)
    shape = (*W_Q.shape[:-4], n_layers, n_heads, n_layers, n_heads)
    q, k, v = (np.full(shape, np.nan) for _ in range(3))
    for src in range(n_layers):
        for dst in range(src + 1, n_layers):
            reads = ((q, W_Q, inner_K, qk_norm), (k, W_K, inner_Q, qk_norm), (v, W_V, outer_O, ov_norm))
            for scores, reader, far_side, dst_norm in reads:
                product = _product_norm(inner_V[..., src, :, :, :], W_O[..., src, :, :, :], reader[..., dst, :, :, :],
                                        far_side[..., dst, :, :, :])  # fmt: skip
                norms = ov_norm[..., src, :, None] * dst_norm[..., dst, None, :]
                scores[..., src, :, dst, :] = np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)
    return Composition(q, k, v)


def _trace_norm(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """|A B| from A^T A and B B^T: the root of the trace of their product."""
    return np.sqrt(np.maximum(np.sum(left * right, axis=(-2, -1)), 0))


def _product_norm(
    inner_V: Float[np.ndarray, "*S H E E"], W_O: Float[np.ndarray, "*S H E D"],
    reader: Float[np.ndarray, "*S H D E"], far_side: Float[np.ndarray, "*S H E E"],
) -> Float[np.ndarray, "*S H H"]:  # fmt: skip
    """|W_V (W_O reader) far| for all pairs of an earlier and a later head: W_V and far enter by their Gram matrices."""
    middle = W_O[..., :, None, :, :] @ reader[..., None, :, :, :]
    return _trace_norm(inner_V[..., :, None, :, :] @ middle, middle @ far_side[..., None, :, :, :])


def is_defined(n_layers: int) -> Bool[np.ndarray, "N N"]:
    """Pairs [earlier layer, later layer] that can compose."""
    return np.triu(np.ones((n_layers, n_layers), bool), k=1)


@lru_cache(maxsize=16)
def random_baseline(d_model: int, d_head: int, n_draws: int = N_BASELINE_DRAWS, seed: int = 0) -> Baseline:
    """Score of pairs of heads whose matrices are N(0, 1): the mean, its error, and the spread of one pair.

    The same for Q, K and V. d_model 64, d_head 16: 0.125 with spread 0.007; 128, 32: 0.0886 with 0.0024.
    """
    rng = np.random.default_rng(seed)
    shape = (n_draws, 2, 1, d_model, d_head)
    W_Q, W_K, W_V = (rng.normal(size=shape) for _ in range(3))
    scores = composition_scores(W_Q, W_K, W_V, rng.normal(size=shape).mT).k[:, 0, 0, 1, 0]
    sd = float(scores.std(ddof=1))
    return Baseline(float(scores.mean()), sd, sd / n_draws**0.5)


def _measure(context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
    config = context.config.model
    weights = fold_norms(heads_alone(params), config)
    scores = composition_scores(*(weights[name] for name in ("W_Q", "W_K", "W_V", "W_O")))
    baseline = random_baseline(config.d_model, config.head_width)
    n_snapshots = len(scores.k)
    found = {
        "composition_baseline": np.full(n_snapshots, baseline.mean),
        "composition_baseline_sd": np.full(n_snapshots, baseline.sd),
        "composition_baseline_sem": np.full(n_snapshots, baseline.sem),
    }
    for name, values in scores._asdict().items():
        found[f"{name}_composition"] = values - baseline.mean
        found[f"{name}_composition_z"] = (values - baseline.mean) / baseline.sd
    return found


def _why_not(context: Context) -> str | None:
    if context.config.model.n_layers < 2:
        return f"composition needs a head in an earlier layer; model.n_layers = {context.config.model.n_layers}"
    return None


_PAIR = ("layer_src", "head_src", "layer_dst", "head_dst")
_MISSING = "only a head in a later layer reads what another wrote"
_READS = {"q": "query", "k": "keys", "v": "values"}

MEASUREMENT = Measurement(
    name="composition",
    source="Elhage et al. 2021, Q-, K- and V-composition",
    variables={
        name: variable
        for letter, side in _READS.items()
        for name, variable in {
            f"{letter}_composition": Variable(
                _PAIR, "1", f"how far head_src writes what the {side} of head_dst read, less the random baseline; "
                "[-baseline, 1 - baseline]", _MISSING,
            ),
            f"{letter}_composition_z": Variable(
                _PAIR, "1", f"{letter}_composition in standard deviations of random pairs", _MISSING
            ),
        }.items()
    }
    | {
        "composition_baseline": Variable(
            (), "1", f"mean score of {N_BASELINE_DRAWS} random pairs, about 1/sqrt(d_model)"
        ),
        "composition_baseline_sd": Variable((), "1", "standard deviation over random pairs"),
        "composition_baseline_sem": Variable((), "1", "standard error of composition_baseline"),
    },
    finish=_measure,
    why_not=_why_not,
)  # fmt: skip
