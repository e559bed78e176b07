"""The logits of an attention-only model as a sum over paths, and the scores of a second-layer head as one.

With attention patterns A and norm scales of the run held fixed, two layers of H heads give 1 + 2H + H^2 terms:

    direct     W_E W_U
    heads      A^h  W_E W_OV^h W_U                       each head of both layers
    virtual    A^h2 A^h1  W_E W_OV^h1 W_OV^h2 W_U        each pair of a first- and a second-layer head

With norms, each ``W_OV`` and ``W_U`` stands behind its norm at the scale of the run. Their sum is the model's logits:
what is left over (`path_residual`) is rounding. Source: Elhage et al. 2021, "Path expansion of logits".

Likewise the scores of a second-layer head are a sum over what its query and its key read: {token, position, each
first-layer head} squared. Source: Elhage et al. 2021, "Path expansion of attention scores QK circuit"; positions are a
source of their own here, since induction goes by tokens.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.frozen_run import (
    FrozenRun,
    freeze,
    frozen_norm,
    head_outputs,
    layer_weight,
    to_logits,
)
from icl_jax.measures.measurement import Context, Measurement, Variable, attention_only, needs_plain_keys
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.forward import positions_TD, unembedding_DV
from icl_jax.model.params import Params, per_head
from icl_jax.model.positions import rotary_frequencies, rotate
from icl_jax.model.previous_token import mixed_keys

MAX_LAYERS = 2
# Rows and positions that the terms are evaluated on: (2 + H)^2 maps of T by T for every head.
_N_ROWS, _MAX_CTX = 4, 128


class Paths(NamedTuple):
    """What each path writes to the last residual stream; the terms of the logits are `to_logits` of these."""

    direct: Float[Array, "B T D"]
    heads: Float[Array, "N H B T D"]
    virtual: Float[Array, "H H B T D"] | None
    """[first-layer head, second-layer head]; None for one layer."""


def expand_paths(params: Params, run: FrozenRun, config: ModelConfig) -> Paths:
    """All paths of an attention-only model of one or two layers. Raises ValueError for any other."""
    if config.d_mlp or not 1 <= config.n_layers <= MAX_LAYERS:
        raise ValueError(f"{config.n_layers=}, {config.d_mlp=}: paths of attention-only models of 1 or 2 layers only")
    heads = [head_outputs(params, run, layer, run.embed, config) for layer in range(config.n_layers)]
    virtual = head_outputs(params, run, 1, heads[0], config) if config.n_layers == 2 else None
    return Paths(run.embed, jnp.stack(heads), virtual)


def path_logits(params: Params, run: FrozenRun, paths: Paths, config: ModelConfig) -> Float[Array, "B T V"]:
    """The sum of all terms."""
    total = paths.direct + jnp.sum(paths.heads, axis=(0, 1))
    if paths.virtual is not None:
        total = total + jnp.sum(paths.virtual, axis=(0, 1))
    return to_logits(params, run, total, config)


def next_token_logit(
    params: Params, run: FrozenRun, parts: Float[Array, "*P B T D"], next_tokens: Int[Array, "B T"], config: ModelConfig
) -> Float[Array, "*P B T"]:
    """What each part adds to the logit of the token that came next, above what it adds to all logits on average.

    Source: Olsson et al. 2022, footnote on direct logit attribution (logits normalised to mean zero).
    """
    W_U = unembedding_DV(params)
    parts = frozen_norm(parts, run.final_scale, params.get("ln_final_w"), config)
    direction_BTD = W_U.T[next_tokens] - jnp.mean(W_U, axis=1)[None, None]
    return jnp.einsum("...BTD,BTD->...BT", parts, direction_BTD)


class ScoreTerms(NamedTuple):
    """The scores of the second layer's heads by what the query and the key read."""

    std: Float[Array, "H Y Y"]
    """[head, query source, key source]: root mean square over visible keys, each query's mean over them subtracted."""
    residual: Float[Array, ""]
    """Largest difference between the sum of the terms and the model's scores."""


def expand_scores(params: Params, run: FrozenRun, config: ModelConfig) -> ScoreTerms:
    """Sources: 0 the token, 1 the position (0 where positions have no embedding), 2 + h head h of layer 0.

    A number added to all scores of a query changes nothing, so each term is centred over the keys that the query sees.
    """
    n_ctx = run.embed.shape[1]
    W_pos = positions_TD(params.get("W_pos"), n_ctx, config)
    position_BTD = jnp.zeros_like(run.embed) if W_pos is None else jnp.broadcast_to(W_pos[None], run.embed.shape)
    is_in_resid = config.positions == "standard"
    token_BTD = run.embed - position_BTD if is_in_resid else run.embed
    heads = head_outputs(params, run, 0, run.embed, config)
    read_before_norm = jnp.concatenate(
        [token_BTD[None], (position_BTD if is_in_resid else 0 * position_BTD)[None], heads]
    )
    read = frozen_norm(read_before_norm, run.scales[1], layer_weight(params, "ln1_w", 1), config)
    if config.positions == "shortformer":
        read = read.at[1].set(position_BTD)
    weights = per_head(params, config)
    q, k = (jnp.einsum("YBTD,HDE->HYBTE", read, weights[name][1]) for name in ("W_Q", "W_K"))
    n_heads, n_sources = q.shape[:2]
    if config.positions == "rotary":
        frequencies = rotary_frequencies(config, layer=1)
        q, k = (rotate(x.reshape(-1, 1, *x.shape[-2:]), frequencies).reshape(x.shape) for x in (q, k))
    by_head = jnp.moveaxis(k, 0, 2).reshape(-1, n_heads, *k.shape[-2:])
    mixed = mixed_keys(by_head, {name: value[1] for name, value in params.items() if name == "smear_alpha"}, config)
    k = jnp.moveaxis(mixed.reshape(n_sources, -1, n_heads, *k.shape[-2:]), 2, 0)
    is_visible = np.tri(n_ctx, dtype=bool)[None]
    n_visible = np.arange(1, n_ctx + 1, dtype=np.float32)[None, :, None]

    def one(q_BTE: Array, k_BTE: Array) -> tuple[Array, Array]:
        scores = jnp.einsum("BQE,BKE->BQK", q_BTE, k_BTE) / math.sqrt(q_BTE.shape[-1])
        scores = jnp.where(is_visible, scores, 0.0)
        centred = jnp.where(is_visible, scores - jnp.sum(scores, -1, keepdims=True) / n_visible, 0.0)
        return jnp.sum(jnp.square(centred)) / (n_visible.sum() * scores.shape[0]), scores

    def one_head(args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q_YBTE, k_YBTE, scores_BQK = args

        def one_query_source(total: Array, q_BTE: Array) -> tuple[Array, Array]:
            def one_key_source(total: Array, k_BTE: Array) -> tuple[Array, Array]:
                variance, scores = one(q_BTE, k_BTE)
                return total + scores, variance

            return jax.lax.scan(one_key_source, total, k_YBTE)

        total, variance_YY = jax.lax.scan(one_query_source, jnp.zeros_like(scores_BQK), q_YBTE)
        return variance_YY, jnp.max(jnp.abs(jnp.where(is_visible, total - scores_BQK, 0.0)))

    model_scores = jnp.where(is_visible[None], run.attn_scores[1], 0.0)
    variance, residual = jax.lax.map(one_head, (q, k, jnp.moveaxis(model_scores, 1, 0)))
    return ScoreTerms(jnp.sqrt(variance), jnp.max(residual))


def look(at: Snapshot) -> dict[str, Array]:
    params, rows, config, run = _run(at)
    paths = expand_paths(params, run, config)
    return {
        "path_direct": _mean_gain(params, run, paths.direct, rows, config),
        "path_heads": _mean_gain(params, run, paths.heads, rows, config),
        "path_residual": jnp.max(jnp.abs(path_logits(params, run, paths, config) - run.logits)),
        "path_logit_max": jnp.max(jnp.abs(run.logits)),
    }


def look_at_pairs(at: Snapshot) -> dict[str, Array]:
    params, rows, config, run = _run(at)
    virtual = head_outputs(params, run, 1, head_outputs(params, run, 0, run.embed, config), config)
    terms = expand_scores(params, run, config)
    return {
        # The later head's axis comes behind the earlier one's.
        "path_virtual": _mean_gain(params, run, virtual, rows, config),
        "qk_term_std": terms.std,
        "qk_term_residual": terms.residual,
    }


def _mean_gain(params: Params, run: FrozenRun, parts: Array, rows: Array, config: ModelConfig) -> Array:
    return jnp.mean(next_token_logit(params, run, parts, rows[:, 1:], config), axis=(-2, -1))


def _run(at: Snapshot) -> tuple[Params, Array, ModelConfig, FrozenRun]:
    n_ctx = min(_MAX_CTX, at.config.n_ctx)
    run = freeze(at.natural.cut(_N_ROWS, n_ctx))
    return at.params, at.rows["held_out"][:_N_ROWS, : 1 + n_ctx], at.config, run


def _two_layers(context: Context) -> str | None:
    model = context.config.model
    if model.n_layers == 1:
        return "one layer has no pairs of heads; model.n_layers = 1"
    added = [name for name in ("b_Q", "b_K") if name in model.biases]
    if added:
        return f"biases of queries and keys are terms of scores that no pair holds; model.biases has {', '.join(added)}"
    if model.changes_scores or model.window:
        return "scores are the product of queries and keys only without ALiBi, a cap and a window"
    return attention_only(context, MAX_LAYERS) or needs_plain_keys(context)


_SOURCE = "Elhage et al. 2021, Path expansion"

PATHS = Measurement(
    name="paths",
    source=_SOURCE,
    variables={
        "path_direct": Variable(
            (), "1", "what the direct path adds to the next token's logit, above its mean over tokens"
        ),
        "path_heads": Variable(("layer", "head"), "1", "the same of a head that reads the embedding alone"),
        "path_residual": Variable((), "1", "largest difference between the sum of all paths and the logits: rounding"),
        "path_logit_max": Variable((), "1", "largest logit in size, to hold path_residual against"),
    },
    look=look,
    why_not=lambda context: attention_only(context, MAX_LAYERS),
)
PATH_PAIRS = Measurement(
    name="path_pairs",
    source=_SOURCE,
    variables={
        "path_virtual": Variable(
            ("head_src", "head_dst"), "1", "what a virtual head (layer 0, layer 1) adds to the next token's logit"
        ),
        "qk_term_std": Variable(
            ("head_dst", "query_source", "key_source"), "1",
            "spread of layer 1's scores by what query and key read: 0 token, 1 position, 2 + h head h of layer 0",
        ),
        "qk_term_residual": Variable((), "1", "largest difference of the sum of those terms to the scores: rounding"),
    },
    look=look_at_pairs,
    why_not=_two_layers,
)  # fmt: skip
MEASUREMENTS = (PATHS, PATH_PAIRS)
