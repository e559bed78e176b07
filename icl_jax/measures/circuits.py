"""The bilinear forms that heads are made of, over all snapshots, layers and heads at once.

Row vectors: ``q = x W_Q``. A head moves information by ``W_OV = W_V W_O`` and chooses where from by
``W_QK = W_Q W_K^T``; both [..., D, D] of rank d_head. Between tokens, [..., V, V]:

- QK circuit ``W_E W_QK W_E^T``, row = query token, column = key token;
- OV circuit ``W_E W_OV W_U``, row = token attended to, column = logit;
- direct path ``W_E W_U``, row = token, column = logit.

Source: Elhage et al. 2021, "Splitting attention head terms into circuits"; a factored matrix each.
Every function takes weights that `fold_norms` has gone through, so that none of them knows about norms, nor about keys
and values that heads share. Biases are no part of a bilinear form: b_V, b_O are written whatever is attended to, b_K
changes no pattern; b_Q alone tells keys apart, and is in `qk_circuit`.
"""

import math

import numpy as np
from jaxtyping import Float

from icl_jax.config import ModelConfig
from icl_jax.maths.factored_matrix import FactoredMatrix
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_layers
from icl_jax.model.params import per_head
from icl_jax.model.positions import rotary_frequencies, sinusoidal

Weights = dict[str, np.ndarray]
"""Parameters with the norms' weights multiplied in, keys and values for each head, float64, W_U always there; see
`fold_norms`."""


_OF_MLPS = ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out", "ln2_w", "ln2_post_w")


def fold_norms(params: StackedParams, config: ModelConfig) -> Weights:
    """The same model with weightless norms: norm weights go into what reads after them. Works on any leading axes.

    A matrix that reads a norm's output has its rows multiplied by the norm's weight. LayerNorm also subtracts the mean
    over D, which is linear: readers get it, and so does what writes to the residual stream (W_E, W_O, W_out and
    standard positions), so that norms of circuits count only what can be read. What is left is one positive scale per
    position, which every circuit takes as 1. A norm of what a layer writes goes into W_O and W_out in the same way, one
    of queries and keys into W_Q and W_K. Source: Elhage et al. 2021, "LayerNorm"; TransformerLens `fold_ln`.

    Parameters that are not needed may be left out. Left as they are: shortformer positions are added after the norm, so
    their circuits take W_Q and W_K from `params`.
    """
    weights = {name: np.asarray(value, np.float64) for name, value in params.items() if not name.startswith("ln")}
    _fold_qk_norms(weights, config)
    weights = per_head(weights, config)
    if "W_U" not in weights and "W_E" in weights:
        weights["W_U"] = weights["W_E"].mT
    ln1_w, ln2_w, ln_final_w = (params.get(name) for name in ("ln1_w", "ln2_w", "ln_final_w"))
    if ln1_w is not None:
        weights |= {
            name: ln1_w[..., None, :, None] * weights[name] for name in ("W_Q", "W_K", "W_V") if name in weights
        }
    mlp_w = ln1_w if config.parallel_residual == "one_norm" else ln2_w
    for name in ("W_in", "W_gate"):
        if mlp_w is not None and name in weights:
            weights[name] = mlp_w[..., None] * weights[name]
    is_centred = config.norm == "layernorm"
    for norm, written in (("ln1_post_w", ("W_O", "b_O")), ("ln2_post_w", ("W_out", "b_out"))):
        for name in written:
            if norm in params and name in weights:
                x = weights[name] - is_centred * weights[name].mean(axis=-1, keepdims=True)
                # [N, D] against N D, N M D or N H E D.
                between = tuple(range(-1 - (x.ndim - params[norm].ndim), -1))
                weights[name] = np.expand_dims(np.asarray(params[norm], np.float64), between) * x
    if ln_final_w is not None and "W_U" in weights:
        weights["W_U"] = ln_final_w[..., None] * weights["W_U"]
    # With norms of what is written alone, all but the unembedding read the mean over D too.
    if is_centred and config.norm_position == "post":
        if "W_U" not in weights:
            return weights
        weights["W_U"] = weights["W_U"] - weights["W_U"].mean(axis=-2, keepdims=True)
    elif is_centred:
        writers = {"W_E", "W_O", "W_out", "b_O", "b_out"} | ({"W_pos"} if config.positions == "standard" else set())
        for name in weights:
            if name in writers:
                weights[name] = weights[name] - weights[name].mean(axis=-1, keepdims=True)
            elif name in ("W_Q", "W_K", "W_V", "W_in", "W_gate", "W_U"):
                weights[name] = weights[name] - weights[name].mean(axis=-2, keepdims=True)
    return weights


def _fold_qk_norms(weights: Weights, config: ModelConfig) -> None:
    """Take the norms' weights, and LayerNorm's mean, of queries and keys into W_Q, W_K and their biases."""
    if config.qk_norm == "none":
        return
    axes = (-1,) if config.qk_norm == "head" else (-3, -1)
    for letter in "QK":
        norm = weights.pop(f"{letter.lower()}_norm_w")
        norm = norm[..., None, :] if config.qk_norm == "head" else norm  # [..., N, 1 or H, E]
        for name, of_norm in ((f"W_{letter}", norm[..., None, :]), (f"b_{letter}", norm)):
            if name not in weights:
                continue
            over = axes if name[0] == "W" else tuple({-1: -1, -3: -2}[axis] for axis in axes)
            is_centred = config.norm == "layernorm"
            weights[name] = of_norm * (weights[name] - is_centred * weights[name].mean(axis=over, keepdims=True))


def without_mlps(params: StackedParams) -> StackedParams:
    """What circuits are made of: in float64, MLPs would be more than all the rest."""
    return {name: value for name, value in params.items() if name not in _OF_MLPS}


def heads_alone(params: StackedParams) -> StackedParams:
    """The same without embedding and unembedding."""
    return {name: value for name, value in without_mlps(params).items() if name not in ("W_E", "W_U", "W_pos")}


def seen_embedding(weights: Weights, config: ModelConfig) -> Float[np.ndarray, "*S V D"]:
    """Tokens as the first layer reads them: W_E over its root mean square; `fold_norms` did the rest of the norm.

    With standard positions the residual stream that the norm sees holds the position as well: then it is approximate.
    """
    W_E = weights["W_E"]
    if config.norm == "none" or config.norm_position == "post":
        return W_E
    return W_E / np.sqrt(np.mean(np.square(W_E), axis=-1, keepdims=True) + config.norm_eps)


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
    blocks are apart, see `position_circuit`. With rotary positions: at distance 0, see `rotation`; before a cap.
    Source: Elhage et al. 2021, "Splitting attention head terms into circuits".
    """
    W_E = weights["W_E"][..., None, None, :, :]
    centred = W_E - W_E.mean(axis=-2, keepdims=True)
    if "b_Q" in weights:
        query = W_E @ weights["W_Q"] + weights["b_Q"][..., None, :]
        return FactoredMatrix(query, (centred @ weights["W_K"]).mT) * _score_scale(weights)
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

    ``P W_Q W_K^T P^T / sqrt(d_head)``, 0 above the diagonal. Raises ValueError for positions that have no
    embedding. With standard positions it is what stands in the residual stream before any norm's scale.
    """
    if not config.has_position_embedding:
        raise ValueError(f"{config.positions} positions have no embedding, so no circuit between positions")
    weights = fold_norms(without_mlps(params), config)
    source = per_head(params, config) if config.positions == "shortformer" else weights
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


def rotation(distance: int, config: ModelConfig, layer: int = 0) -> Float[np.ndarray, "E E"]:
    """R such that ``W_Q R W_K^T`` is a layer's W_QK at `distance` = query - key, with rotary positions.

    Source: Su et al. 2021, section 3.2, in the half-split layout of `icl_jax.model.positions.rotate`.
    """
    angle = distance * rotary_frequencies(config, layer)
    cos, sin = np.diag(np.cos(angle)), np.diag(np.sin(angle))
    turned = np.block([[cos, sin], [-sin, cos]])
    whole = np.eye(config.head_width)
    whole[: len(turned), : len(turned)] = turned
    return whole


def token_std(circuit: FactoredMatrix) -> Float[np.ndarray, "..."]:
    """Root mean square entry of a circuit whose rows have mean zero: how far apart it holds the columns."""
    return np.asarray(circuit.norm() / math.sqrt(circuit.shape[-1] * circuit.shape[-2]))


def _token_stds(weights: Weights, config: ModelConfig) -> Arrays:
    """`token_std` of the QK and OV circuits of tokens as the first layer reads them, without a V by E for every head.

    |A B|^2 = tr(A^T A B B^T), and of A = W_E W + 1 b and B = W_U alike the Gram matrices need that of W_E or W_U alone.
    """
    W_E = seen_embedding(weights, config)
    n_vocab = W_E.shape[-2]
    total_D, gram = W_E.sum(axis=-2), W_E.mT @ W_E
    of_mean = total_D[..., :, None] * total_D[..., None, :] / n_vocab
    gram, centred = (x[..., None, None, :, :] for x in (gram, gram - of_mean))
    W_Q, W_K, W_V, W_O = (weights[name] for name in ("W_Q", "W_K", "W_V", "W_O"))
    query = W_Q.mT @ gram @ W_Q
    if "b_Q" in weights:
        b_Q = weights["b_Q"][..., None, :]
        cross = W_Q.mT @ total_D[..., None, None, :, None] @ b_Q
        query = query + cross + cross.mT + n_vocab * b_Q.mT @ b_Q
    W_U = centred_unembedding(weights)
    to_logits = W_O @ (W_U @ W_U.mT)[..., None, None, :, :] @ W_O.mT
    pairs = {
        "qk_token_std": (query, W_K.mT @ centred @ W_K, _score_scale(weights)),
        "ov_token_std": (W_V.mT @ gram @ W_V, to_logits, 1.0),
    }
    return {
        name: scale / n_vocab * np.sqrt(np.maximum(np.sum(left * right, axis=(-2, -1)), 0))
        for name, (left, right, scale) in pairs.items()
    }


def _score_scale(weights: Weights) -> float:
    return 1 / math.sqrt(weights["W_Q"].shape[-1])


def _measure(context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
    config = context.config.model
    weights = fold_norms(without_mlps(params), config)
    found = {
        "qk_norm": qk_matrix(weights).norm(),
        "ov_norm": ov_matrix(weights).norm(),
        **_token_stds(weights, config),
    }
    if config.qk_norm != "none":
        return found | {name: np.full_like(found["ov_norm"], np.nan) for name in _SCORES}
    if not config.has_position_embedding:
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
_SCORES = ("qk_norm", "qk_token_std", "qk_position_std")
_NORMALISED = "queries and keys are normalised, so the size of W_Q and W_K says nothing"

MEASUREMENT = Measurement(
    name="circuits",
    source="Elhage et al. 2021, Splitting attention head terms into circuits",
    variables={
        "qk_norm": Variable(_HEAD, "1", "Frobenius norm of W_Q W_K^T, norm weights folded in; >= 0", _NORMALISED),
        "ov_norm": Variable(_HEAD, "1", "Frobenius norm of W_V W_O, norm weights folded in; >= 0"),
        "qk_token_std": Variable(
            _HEAD, "1", "spread of the attention scores between tokens as the first layer reads them", _NORMALISED
        ),
        "qk_position_std": Variable(
            _HEAD, "1", "spread of the attention scores between positions over visible keys",
            missing=f"rotary and ALiBi positions have no embedding; {_NORMALISED}",
        ),
        "ov_token_std": Variable(
            _HEAD, "1", "spread of the logits from attending to a token, but for the final norm's scale"
        ),
    },
    finish=_measure,
    why_not=needs_layers,
)  # fmt: skip
