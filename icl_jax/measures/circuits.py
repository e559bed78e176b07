"""The bilinear forms that heads are made of, over all snapshots, layers and heads at once.

Row vectors: ``q = x W_Q``. A head moves information by ``W_OV = W_V W_O`` and chooses where from by
``W_QK = W_Q W_K^T``; both [..., D, D] of rank d_head. Between tokens, [..., V, V]:

- QK circuit ``W_E W_QK W_E^T``, row = query token, column = key token;
- OV circuit ``W_E W_OV W_U``, row = token attended to, column = logit;
- direct path ``W_E W_U``, row = token, column = logit.

Source: Elhage et al. 2021, "Splitting attention head terms into circuits"; a factored matrix each.
Every function takes weights that `fold_norms` has gone through, so that none of them knows about norms.
"""

import math

import numpy as np
from jaxtyping import Float

from icl_jax.config import ModelConfig
from icl_jax.maths.factored_matrix import FactoredMatrix
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_layers
from icl_jax.model.forward import NORM_EPS
from icl_jax.model.positions import sinusoidal

Weights = dict[str, np.ndarray]
"""Parameters with the norms' weights multiplied in, float64, W_U always there; see `fold_norms`."""


def fold_norms(params: StackedParams, config: ModelConfig) -> Weights:
    """The same model with weightless norms: norm weights go into what reads after them. Works on any leading axes.

    A matrix that reads a norm's output has its rows multiplied by the norm's weight. LayerNorm also subtracts the mean
    over D, which is linear: readers get it, and so does what writes to the residual stream (W_E, W_O, W_out and
    standard positions), so that norms of circuits count only what can be read. What is left is one positive scale per
    position, which every circuit takes as 1. Source: Elhage et al. 2021, "LayerNorm"; TransformerLens `fold_ln`.

    Left as they are: shortformer positions are added after the norm, so their circuits take W_Q and W_K from `params`.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in params.items() if not name.startswith("ln")}
    if "W_U" not in weights:
        weights["W_U"] = weights["W_E"].mT
    ln1_w, ln2_w, ln_final_w = (params.get(name) for name in ("ln1_w", "ln2_w", "ln_final_w"))
    if ln1_w is not None:
        weights |= {name: ln1_w[..., None, :, None] * weights[name] for name in ("W_Q", "W_K", "W_V")}
    if ln2_w is not None:
        weights["W_in"] = ln2_w[..., None] * weights["W_in"]
    if ln_final_w is not None:
        weights["W_U"] = ln_final_w[..., None] * weights["W_U"]
    if config.norm == "layernorm":
        writers = {"W_E", "W_O", "W_out"} | ({"W_pos"} if config.positions == "standard" else set())
        for name in weights:
            if name in writers:
                weights[name] = weights[name] - weights[name].mean(axis=-1, keepdims=True)
            elif name in ("W_Q", "W_K", "W_V", "W_in", "W_U"):
                weights[name] = weights[name] - weights[name].mean(axis=-2, keepdims=True)
    return weights


def seen_embedding(weights: Weights, config: ModelConfig) -> Float[np.ndarray, "*S V D"]:
    """Tokens as the first layer reads them: W_E over its root mean square; `fold_norms` did the rest of the norm.

    With standard positions the residual stream that the norm sees holds the position as well: then it is approximate.
    """
    W_E = weights["W_E"]
    if config.norm == "none":
        return W_E
    return W_E / np.sqrt(np.mean(np.square(W_E), axis=-1, keepdims=True) + NORM_EPS)


def centred_unembedding(weights: Weights) -> Float[np.ndarray, "*S D V"]:
    """W_U less its mean over the vocabulary: the softmax does not see a number added to all logits."""
    W_U = weights["W_U"]
    return W_U - W_U.mean(axis=-1, keepdims=True)


def qk_matrix(weights: Weights) -> FactoredMatrix:
    """``W_Q W_K^T`` [..., layer, head, D, D]; not divided by sqrt(d_head)."""
    return FactoredMatrix(weights["W_Q"], weights["W_K"].mT)


def ov_matrix(weights: Weights) -> FactoredMatrix:
    """``W_V W_O`` [..., layer, head, D, D]."""
    return FactoredMatrix(weights["W_V"], weights["W_O"])


def qk_circuit(weights: Weights) -> FactoredMatrix:
    """Score between tokens, [..., layer, head, query token, key token], each row less its mean over keys.

    A number added to a row changes no attention pattern. Divided by sqrt(d_head), so in units of scores; position
    blocks are apart, see `position_circuit`. With rotary positions: at distance 0, see `rotation`.
    Source: Elhage et al. 2021, "Splitting attention head terms into circuits".
    """
    W_E = weights["W_E"][..., None, None, :, :]
    centred = W_E - W_E.mean(axis=-2, keepdims=True)
    return W_E @ qk_matrix(weights) @ centred.mT * _score_scale(weights)


def ov_circuit(weights: Weights) -> FactoredMatrix:
    """Effect on the logits of attending to a token, [..., layer, head, token, logit], each row of mean zero.

    Source: Elhage et al. 2021, "Splitting attention head terms into circuits".
    """
    W_E, W_U = weights["W_E"][..., None, None, :, :], centred_unembedding(weights)[..., None, None, :, :]
    return W_E @ ov_matrix(weights) @ W_U


def direct_path(weights: Weights) -> FactoredMatrix:
    """Logits that a token gives by itself, [..., token, logit], each row of mean zero: bigrams at best.

    Source: Elhage et al. 2021, "Zero-layer transformers model bigram statistics".
    """
    return FactoredMatrix(weights["W_E"], centred_unembedding(weights))


def position_circuit(params: StackedParams, config: ModelConfig) -> Float[np.ndarray, "*S N H T T"]:
    """Score between positions, [..., layer, head, query, key], each row less its mean over the keys that it sees.

    ``P W_Q W_K^T P^T / sqrt(d_head)``, 0 above the diagonal. Raises ValueError for rotary positions, which have no
    embedding. With standard positions it is what stands in the residual stream before any norm's scale.
    """
    if config.positions == "rotary":
        raise ValueError("rotary positions have no embedding, so no circuit between positions")
    weights = fold_norms(params, config)
    source = params if config.positions == "shortformer" else weights
    W_pos = np.asarray(weights.get("W_pos", sinusoidal(config.n_ctx, config.d_model)), np.float64)
    if "W_pos" not in weights and config.positions == "standard" and config.norm == "layernorm":
        W_pos = W_pos - W_pos.mean(axis=-1, keepdims=True)
    q, k = (W_pos[..., None, None, :, :] @ np.asarray(source[name], np.float64) for name in ("W_Q", "W_K"))
    is_visible = np.tri(config.n_ctx)
    scores = q @ (k.mT * _score_scale(weights))
    scores *= is_visible
    scores -= scores.sum(axis=-1, keepdims=True) / np.arange(1, config.n_ctx + 1)[:, None]
    scores *= is_visible
    return scores


def rotation(distance: int, d_head: int) -> Float[np.ndarray, "E E"]:
    """R such that ``W_Q R W_K^T`` is W_QK at `distance` = query - key, with rotary positions.

    Source: Su et al. 2021, section 3.2, in the half-split layout of `icl_jax.model.positions.rotate`.
    """
    half = d_head // 2
    angle = distance * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.diag(np.cos(angle)), np.diag(np.sin(angle))
    return np.block([[cos, sin], [-sin, cos]])


def token_std(circuit: FactoredMatrix) -> Float[np.ndarray, "..."]:
    """Root mean square entry of a circuit whose rows have mean zero: how far apart it holds the columns."""
    return np.asarray(circuit.norm() / math.sqrt(circuit.shape[-1] * circuit.shape[-2]))


def _score_scale(weights: Weights) -> float:
    return 1 / math.sqrt(weights["W_Q"].shape[-1])


def _measure(context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
    config = context.config.model
    weights = fold_norms(params, config)
    seen = {**weights, "W_E": seen_embedding(weights, config)}
    found = {
        "qk_norm": qk_matrix(weights).norm(),
        "ov_norm": ov_matrix(weights).norm(),
        "qk_token_std": token_std(qk_circuit(seen)),
        "ov_token_std": token_std(ov_circuit(seen)),
    }
    if config.positions == "rotary":
        return found | {"qk_position_std": np.full_like(found["qk_norm"], np.nan)}
    # One snapshot at a time: T by T for every head.
    one_by_one = (
        position_circuit({name: value[s] for name, value in params.items()}, config)
        for s in range(len(found["qk_norm"]))
    )
    n_visible = config.n_ctx * (config.n_ctx + 1) / 2
    squares = [np.einsum("nhqk,nhqk->nh", scores, scores) for scores in one_by_one]
    return found | {"qk_position_std": np.sqrt(np.stack(squares) / n_visible)}


_HEAD = ("layer", "head")

MEASUREMENT = Measurement(
    name="circuits",
    source="Elhage et al. 2021, Splitting attention head terms into circuits",
    variables={
        "qk_norm": Variable(_HEAD, "1", "Frobenius norm of W_Q W_K^T, norm weights folded in; >= 0"),
        "ov_norm": Variable(_HEAD, "1", "Frobenius norm of W_V W_O, norm weights folded in; >= 0"),
        "qk_token_std": Variable(
            _HEAD, "1", "spread of the attention scores between tokens as the first layer reads them"
        ),
        "qk_position_std": Variable(
            _HEAD, "1", "spread of the attention scores between positions over visible keys",
            missing="rotary positions have no embedding",
        ),
        "ov_token_std": Variable(
            _HEAD, "1", "spread of the logits from attending to a token, but for the final norm's scale"
        ),
    },
    finish=_measure,
    why_not=needs_layers,
)  # fmt: skip
