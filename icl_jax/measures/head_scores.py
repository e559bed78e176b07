"""What every head attends to: scores read off its attention pattern.

`A[q, k]` is the attention of query q to key k. On BOS and a block of distinct random tokens said four times
(`Context.repeated`), with q a query whose token occurred before:

- prefix_matching: sum over earlier occurrences k of A[q, k + 1], mean over q. Ideal 1, uniform attention 0.031.
- prefix_matching_mean: mean over all such entries, the other reading of the paper. At most 1/2 on four copies for
  a head that shares its attention among them, 0.61 if it looks at the nearest only.
- duplicate_token: sum over earlier occurrences of A[q, k], mean over q.

On BOS and a block said twice (`Context.repeated_once`): induction_stripe, the mean of the diagonal that an induction
head lights up, as TransformerLens's demos take it. Two of its entries cannot match: an ideal head has R/(R+2) or more,
R being the block's length. Named apart, for it is not comparable with prefix_matching.

On held-out rows, up to 512 tokens, mean over q >= 1: previous_token A[q, q-1], current_token A[q, q], first_token
A[q, 0] (rest).

All are in [0, 1]. Source: Olsson et al. 2022, appendix "Head activation evaluators", with its changelog's correction
(the target follows the occurrence); the stripe, duplicate, current and first token: TransformerLens demos.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths import head_scores
from icl_jax.maths.activations import Activations, AnyParams
from icl_jax.measures.measurement import Context, Measurement, Variable
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_tokens

_SHORTEST = 9  # BOS and a block of two, four times


@takes_tokens
def prefix_matching(
    params: AnyParams, tokens: Int[Array, "B T"] | np.ndarray, config: ModelConfig, *, reduce: str = "sum"
) -> Float[Array, "N H"]:
    """Prefix-matching score of every head on `tokens`, in which tokens repeat (else NaN).

    reduce="sum" sums over earlier occurrences and takes the mean over queries; "mean" is the mean over all entries.
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"{reduce=} must be 'sum' or 'mean'")
    score = head_scores.prefix_matching if reduce == "sum" else _prefix_matching_mean
    return _each_layer(params, tokens, config, lambda pattern: score(pattern, jnp.asarray(tokens)))


@takes_tokens
def previous_token(
    params: AnyParams, tokens: Int[Array, "B T"] | np.ndarray, config: ModelConfig
) -> Float[Array, "N H"]:
    """Mean attention of every head to the token before."""
    return _each_layer(params, tokens, config, head_scores.previous_token)


@takes_tokens
def duplicate_token(
    params: AnyParams, tokens: Int[Array, "B T"] | np.ndarray, config: ModelConfig
) -> Float[Array, "N H"]:
    """Attention of every head to earlier occurrences of the query token, summed; mean over queries that have one."""
    return _each_layer(params, tokens, config, lambda pattern: _duplicate_token(pattern, jnp.asarray(tokens)))


@takes_tokens
def induction_stripe(
    params: AnyParams, tokens: Int[Array, "B T"] | np.ndarray, config: ModelConfig
) -> Float[Array, "N H"]:
    """Mean of the diagonal R - 1 below the main one, for BOS and R tokens said twice."""
    repeat_len = (tokens.shape[1] - 1) // 2
    return _each_layer(params, tokens, config, lambda pattern: _stripe(pattern, repeat_len - 1))


def _each_layer(
    params: AnyParams, tokens: jax.Array | np.ndarray, config: ModelConfig, score: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    seen = Activations(params, tokens, config, ("pattern",))
    scores: jax.Array = seen.each_layer(("pattern",), lambda layer, _params: score(layer["pattern"]))
    return scores


def _earlier(tokens: jax.Array) -> jax.Array:
    """B Q K: key k holds the query's token and stands before it."""
    n_ctx = tokens.shape[1]
    return (tokens[:, :, None] == tokens[:, None, :]) & np.tril(np.ones((n_ctx, n_ctx), bool), k=-1)[None]


def _prefix_matching_mean(pattern: jax.Array, tokens: jax.Array) -> jax.Array:
    target_BQK = jnp.pad(_earlier(tokens)[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
    total_H = jnp.sum(jnp.where(target_BQK[:, None], pattern, 0.0), axis=(0, 2, 3))
    return total_H / jnp.sum(target_BQK, dtype=total_H.dtype)


def _duplicate_token(pattern: jax.Array, tokens: jax.Array) -> jax.Array:
    earlier_BQK = _earlier(tokens)
    total_H = jnp.sum(jnp.where(earlier_BQK[:, None], pattern, 0.0), axis=(0, 2, 3))
    return total_H / jnp.sum(jnp.any(earlier_BQK, axis=-1), dtype=total_H.dtype)


def _stripe(pattern: jax.Array, below: int) -> jax.Array:
    return jnp.mean(jnp.diagonal(pattern, offset=-below, axis1=-2, axis2=-1), axis=(0, 2))


def look(at: Snapshot) -> dict[str, jax.Array]:
    tokens, once = at.repeated.tokens, at.repeated_once
    below = (once.tokens.shape[1] - 1) // 2 - 1

    def on_repeated(seen: dict[str, jax.Array], _params: Params) -> dict[str, jax.Array]:
        pattern = seen["pattern"]
        return {
            "prefix_matching": head_scores.prefix_matching(pattern, tokens),
            "prefix_matching_mean": _prefix_matching_mean(pattern, tokens),
            "duplicate_token": _duplicate_token(pattern, tokens),
        }

    names = ("pattern",)
    return {
        **at.repeated.each_layer(names, on_repeated),
        "induction_stripe": once.each_layer(names, lambda seen, _params: _stripe(seen["pattern"], below)),
        **at.attention_on_text,
    }


def why_not(context: Context) -> str | None:
    if not context.config.model.n_layers:
        return "the model has no layers, so it has no heads"
    if context.config.model.n_ctx < _SHORTEST:
        return f"n_ctx = {context.config.model.n_ctx}: too short for BOS and two tokens four times"
    return None


_HEADS = ("layer", "head")

MEASUREMENT = Measurement(
    name="head_scores",
    source="Olsson et al. 2022, appendix Head activation evaluators",
    variables={
        "prefix_matching": Variable(_HEADS, "attention", "to what followed earlier occurrences, summed; [0, 1]"),
        "prefix_matching_mean": Variable(_HEADS, "attention", "the same, mean over entries; [0, 0.61]"),
        "duplicate_token": Variable(_HEADS, "attention", "to earlier occurrences of the same token, summed; [0, 1]"),
        "induction_stripe": Variable(_HEADS, "attention", "TransformerLens's diagonal on a block said twice; [0, 1]"),
        "previous_token": Variable(_HEADS, "attention", "to the token before, on held-out rows; [0, 1]"),
        "current_token": Variable(_HEADS, "attention", "to the query itself, on held-out rows; [0, 1]"),
        "first_token": Variable(_HEADS, "attention", "to position 0 (rest), on held-out rows; [0, 1]"),
    },
    look=look,
    why_not=why_not,
    live=("prefix_matching", "previous_token"),
)
