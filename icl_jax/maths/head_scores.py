"""Scores of attention heads read off their patterns, cheap enough to take during training."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icl_jax.config.interventions import HEAD_THRESHOLD as HEAD_THRESHOLD


def followers(tokens: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """For query q (second axis), the keys k + 1 <= q where the token at k < q is the token at q."""
    n_ctx = tokens.shape[1]
    same_BQK = tokens[:, :, None] == tokens[:, None, :]
    is_earlier_QK = jnp.tril(jnp.ones((n_ctx, n_ctx), bool), k=-1)
    earlier_BQK = same_BQK & is_earlier_QK[None]
    # The successor of an occurrence is one key to the right.
    return jnp.pad(earlier_BQK[:, :, :-1], ((0, 0), (0, 0), (1, 0)))


def prefix_matching(pattern: Float[Array, "B H T T"], tokens: Int[Array, "B T"]) -> Float[Array, " H"]:
    """Attention, summed over keys, to the tokens that followed earlier occurrences of the query token.

    Mean over all queries whose token occurred before. Range [0, 1]; an ideal induction head scores 1, uniform
    attention 0.031 on BOS + 25 tokens x 4. NaN if no token repeats.
    Source: Olsson et al. 2022, appendix "Head activation evaluators" with the correction of its changelog; the sum over
    earlier copies is our reading of "fraction of attention".
    """
    target_BQK = followers(tokens)
    weight_BHQ = jnp.sum(jnp.where(target_BQK[:, None], pattern, 0.0), axis=-1)
    has_target_BQ = jnp.any(target_BQK, axis=-1)
    n_queries = jnp.sum(has_target_BQ, dtype=weight_BHQ.dtype)
    return jnp.sum(jnp.where(has_target_BQ[:, None], weight_BHQ, 0.0), axis=(0, 2)) / n_queries


def previous_token(pattern: Float[Array, "B H T T"]) -> Float[Array, " H"]:
    """Mean attention to the token before, over queries 1 and later. Range [0, 1]; uniform attention: mean of 1/(q+1).

    Source: Olsson et al. 2022, appendix "Head activation evaluators".
    """
    below_diagonal = jnp.diagonal(pattern, offset=-1, axis1=-2, axis2=-1)
    return jnp.mean(below_diagonal, axis=(0, 2))


class InductionHead(NamedTuple):
    """The first head whose prefix matching reached `HEAD_THRESHOLD`, the highest if there were several."""

    tokens: int
    """Tokens trained on at the probe that saw it."""
    layer: int
    head: int
    score: float
    """Its prefix matching there."""


def first_induction_head(
    tokens: Int[np.ndarray, " P"], prefix_matching: Float[np.ndarray, "P N H"]
) -> InductionHead | None:
    """The first induction head of probes P in their order; None where there is none yet."""
    for n_tokens, score_NH in zip(tokens, prefix_matching, strict=True):
        if score_NH.size and score_NH.max() >= HEAD_THRESHOLD:
            layer, head = np.unravel_index(np.argmax(score_NH), score_NH.shape)
            return InductionHead(int(n_tokens), int(layer), int(head), float(score_NH.max()))
    return None


def repeated_tokens(
    candidates: Int[np.ndarray, " V"], bos_id: int, n_ctx: int, *, n_sequences: int, repeat_len: int, n_repeats: int,
    seed: int,
) -> Int[np.ndarray, "B T"]:  # fmt: skip
    """Sequences of BOS and a block of distinct random tokens that stands `n_repeats` times.

    The block is cut down to what `n_ctx` and the number of candidates allow. Tokens are drawn without replacement:
    a token twice in a block would be a match that the score does not expect.
    Source: Olsson et al. 2022, appendix "Head activation evaluators".
    """
    repeat_len = min(repeat_len, (n_ctx - 1) // n_repeats, len(candidates))
    rng = np.random.default_rng(seed)
    blocks = np.stack([rng.choice(candidates, repeat_len, replace=False) for _ in range(n_sequences)])
    bos = np.full((n_sequences, 1), bos_id)
    return np.concatenate([bos, np.tile(blocks, (1, n_repeats))], axis=1).astype(np.int32)
