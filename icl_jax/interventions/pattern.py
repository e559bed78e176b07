"""An attention pattern that the tokens fix, in place of the head's own.

previous: the token before, the first position itself; induction: evenly what followed earlier copies of the token;
duplicate: evenly its earlier copies; both of the latter the first position where there is none, as heads that rest do;
uniform: evenly all positions up to the query's own; first: the first position; identity: the query's own.

Source: the clamps of Singh et al. 2024, "What needs to go right for an induction head?".
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from icl_jax.config.interventions import Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternOptions(Options):
    """A pattern that the tokens fix."""

    pattern: Literal["previous", "induction", "duplicate", "uniform", "first", "identity"]
    """Which."""


def fixed_pattern(tokens: "jax.Array", name: str) -> "jax.Array":
    """[B, Q, K], float32, of tokens [B, T]: rows add up to 1, nothing looks ahead."""
    import jax.numpy as jnp

    from icl_jax.maths.head_scores import followers

    n_ctx = tokens.shape[1]
    query, key = jnp.arange(n_ctx)[:, None], jnp.arange(n_ctx)[None, :]
    if name in ("induction", "duplicate"):
        is_target = followers(tokens) if name == "induction" else (
            (tokens[:, :, None] == tokens[:, None, :]) & (key < query)[None]
        )  # fmt: skip
        is_target |= ~jnp.any(is_target, axis=-1, keepdims=True) & (key == 0)[None]
    else:
        where = {
            "previous": key == jnp.maximum(query - 1, 0), "uniform": key <= query, "first": (key == 0) & (query >= 0),
            "identity": key == query,
        }  # fmt: skip
        is_target = jnp.broadcast_to(where[name], (tokens.shape[0], n_ctx, n_ctx))
    weight = is_target.astype(jnp.float32)
    return weight / jnp.sum(weight, axis=-1, keepdims=True)


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    import jax.numpy as jnp

    assert isinstance(at.options, PatternOptions)
    return jnp.broadcast_to(fixed_pattern(at.tokens, at.options.pattern)[:, None], value.shape)


INTERVENTION = Kind(apply=apply, options=PatternOptions, taps=("pattern",), parameters=False)
