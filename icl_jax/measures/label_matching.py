"""Which heads look for what followed before, at the tokens that the corpus labels.

With q the position before a labelled token, and the earlier occurrences k < q of the token at q:

    label_matching[label, layer, head] = sum over k of A[q, k + 1], mean over those q that have an earlier occurrence

It is prefix matching on the corpus's own text, one behaviour at a time: a head may match where a behaviour asks for it
and nowhere else, so that random tokens, which prefix_matching takes, do not show it. Range [0, 1]; uniform attention
scores the mean of (number of occurrences) / (q + 1). NaN for a label none of whose tokens follows a token that occurred
before. Up to 128 held-out rows. Source: ours, after Olsson et al. 2022, Argument 4 ("the same heads").
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations
from icl_jax.maths.head_scores import followers
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.measurement import Context, Measurement, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_rows, takes_tokens

_MAX_ROWS = 128
_ROWS_AT_A_TIME = 8


@takes_tokens
def matching_by_query(
    params: Params, tokens: Int[Array, "B T"], config: ModelConfig
) -> tuple[Float[Array, "N H B T"], Bool[Array, "B T"]]:
    """Attention of each query to what followed its token before, summed; and whether there is any such key."""
    is_follower_BQK = followers(tokens)
    seen = Activations(params, tokens, config, ("pattern",)).of_layers("pattern")
    matched = [jnp.sum(jnp.where(is_follower_BQK[:, None], pattern, 0.0), axis=-1) for pattern in seen]
    return jnp.moveaxis(jnp.stack(matched), 1, 2), jnp.any(is_follower_BQK, axis=-1)


@takes_rows
def label_matching(
    params: Params, rows: Int[Array, "B tokens"], labels: Int[Array, "B tokens"], n_labels: int, config: ModelConfig
) -> Float[Array, "label N H"]:
    """The score of every label and head; NaN for a label without a query to measure."""
    numbers = jnp.arange(1, n_labels + 1)

    def some_rows(rows: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        matched_NHBQ, is_there_BQ = matching_by_query(params, rows[:, :-1], config)
        is_here_LBQ = (labels[None, :, 1:] == numbers[:, None, None]) & is_there_BQ[None]
        weight_LBQ = is_here_LBQ.astype(jnp.float32)
        return jnp.einsum("NHBQ,LBQ->BLNH", matched_NHBQ, weight_LBQ), jnp.sum(weight_LBQ, axis=2).T

    total_BLNH, count_BL = map_rows(some_rows, rows, labels, n_at_a_time=_ROWS_AT_A_TIME)
    count_L = jnp.sum(count_BL, axis=0)
    return jnp.sum(total_BLNH, axis=0) / jnp.where(count_L > 0, count_L, jnp.nan)[:, None, None]


def look(at: Snapshot, numbers: jax.Array) -> dict[str, jax.Array]:
    rows, labels = at.rows["held_out"][:_MAX_ROWS], at.rows["labels"][:_MAX_ROWS]
    return {"label_matching": label_matching(at.params, rows, labels, len(numbers), at.config)}


def _why_not(context: Context) -> str | None:
    if context.labels is None:
        return "the corpus does not label its tokens"
    return needs_layers(context)


MEASUREMENT = Measurement(
    name="label_matching",
    source="ours, after Olsson et al. 2022, Argument 4",
    variables={
        "label_matching": Variable(
            ("label", "layer", "head"), "attention", "to what followed the same token before, by label; [0, 1]",
            missing="no token of the label follows one that occurred before",
        )
    },
    look=look,
    reads=lambda context: (np.arange(len(context.label_names)),),
    why_not=_why_not,
)  # fmt: skip
