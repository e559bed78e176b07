"""Nothing is there."""

from typing import TYPE_CHECKING

from icl_jax.config.interventions import Kind

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    import jax.numpy as jnp

    return jnp.zeros_like(value)


INTERVENTION = Kind(apply=apply)
