"""The mean of the step's rows at that position.

Gradients go through the mean. Source: mean ablation, Wang et al. 2022 (IOI).
"""

from typing import TYPE_CHECKING

from icl_jax.config.axes import ACTIVATION_AXES
from icl_jax.config.interventions import Kind

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    import jax.numpy as jnp

    return jnp.broadcast_to(at.mean(value), value.shape)


INTERVENTION = Kind(
    apply=apply,
    parameters=False,
    whole_batch=True,
    taps=tuple(name for name in ACTIVATION_AXES if name != "attn_scores"),
)
