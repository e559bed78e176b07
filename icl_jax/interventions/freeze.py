"""Of a parameter no update: no gradient, no decay, no moments. Through an activation no gradient."""

from typing import TYPE_CHECKING

from icl_jax.config.interventions import Kind

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    import jax

    return jax.lax.stop_gradient(value)


INTERVENTION = Kind(apply=apply, stops_updates=True)
