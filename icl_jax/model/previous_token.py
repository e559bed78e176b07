"""What a key or an embedding takes from the token before it: architectures in which one layer can match prefixes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from icl_jax.config import ModelConfig
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params
from icl_jax.model.precision import einsum


def smear(k: Float[Array, "B H T E"], alpha: Float[Array, " H"]) -> Float[Array, "B H T E"]:
    """Mix each key with its predecessor: ``s k_j + (1 - s) k_(j-1)``, s = sigmoid(alpha) per head; key 0 stays.

    Source: Olsson et al. 2022, Argument 2.
    """
    own = jax.nn.sigmoid(alpha)[None, :, None, None].astype(k.dtype)
    previous = jnp.concatenate([k[:, :, :1], k[:, :, :-1]], axis=2)
    return own * k + (1 - own) * previous


def offset_keys(k: Float[Array, "B H T E"], n: int) -> Float[Array, "B H T E"]:
    """Keys whose last n entries are those of the key before; key 0 stays.

    A key then says which token it is and which came before, so that one layer can match prefixes. Source:
    modded-nanogpt, the half of each head that is not rotated.
    """
    kept = k.shape[-1] - n
    late = k[..., kept:]
    late = jnp.concatenate([late[:, :, :1], late[:, :, :-1]], axis=2)
    return jnp.concatenate([k[..., :kept], late], axis=3)


def mixed_keys(k: Float[Array, "B H T E"], layer: Params, config: ModelConfig) -> Float[Array, "B H T E"]:
    """Keys with what they take from the key before, if anything: linear in keys."""
    if config.key_offset:
        k = offset_keys(k, config.key_offset)
    return smear(k, layer["smear_alpha"]) if config.smeared_keys else k


def gated_smear(
    x: Float[Array, "B T D"], weight: Float[Array, " D"], scale: Float[Array, ""], config: ModelConfig
) -> Float[Array, "B T D"]:
    """``x_t + scale sigmoid(norm(x_t) weight) x_(t-1)``; x_0 stays.

    Source: nanochat. Departures: its gate reads the first 24 entries, and its embeddings are normalised themselves.
    """
    read = x if config.norm == "none" else normalise(x, jnp.ones_like(weight), config)
    gate_BT = scale * jax.nn.sigmoid(einsum("BTD,D->BT", read, weight))
    return jnp.concatenate([x[:, :1], x[:, 1:] + gate_BT[:, 1:, None] * x[:, :-1]], axis=1)
