"""Norms of the residual stream, and of queries and keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icl_jax.config import ModelConfig


def normalise(
    x: Float[Array, "B T D"], weight: Float[Array, " D"] | None, config: ModelConfig
) -> Float[Array, "B T D"]:
    """LayerNorm or RMSNorm over D with a trained scale and no bias, in float32; identity for "none"."""
    if weight is None:
        return x
    wide = x.astype(jnp.float32)
    if x.shape[0] == 1:  # XLA's sums on a CPU are 3 to 14 times slower for a batch of one row than without that axis
        wide = wide[0]
    if config.norm == "layernorm":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + config.norm_eps)
    weight = jnp.expand_dims(weight.astype(jnp.float32), range(wide.ndim - 1))
    return (wide * scale * weight).astype(x.dtype).reshape(x.shape)


def normalise_heads(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """A norm of queries or keys, [B, H, T, E]: over each head, weight [E], or over all of them, weight [H, E]."""
    if weight.ndim == 1:
        return normalise(x.reshape(-1, *x.shape[-2:]), weight, config).reshape(x.shape)
    x_BTHE = jnp.swapaxes(x, 1, 2)
    flat = x_BTHE.reshape(*x_BTHE.shape[:2], -1)
    return jnp.swapaxes(normalise(flat, weight.reshape(-1), config).reshape(x_BTHE.shape), 1, 2)
