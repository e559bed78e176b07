"""A head's result as that of a perfect copying head: it writes the unembedding of whatever token it looks at.

Times a number, the logit that attention of 1 gives. The pattern is the head's own, or one that an earlier intervention
gave it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_jax.config.interventions import Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyOptions(Options):
    """A perfect copying head."""

    copy: float
    """Times the token's direction in the unembedding, scaled to length 1."""


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    import jax.numpy as jnp

    from icl_jax.model.forward import unembedding_DV
    from icl_jax.model.precision import einsum

    assert at.pattern is not None
    W_VD = unembedding_DV(at.params).T
    W_VD = W_VD / jnp.linalg.norm(W_VD, axis=-1, keepdims=True)
    written_BKD = (at.number * jnp.take(W_VD, at.tokens, axis=0)).astype(value.dtype)
    return einsum("BHQK,BKD->BQHD", at.pattern.astype(value.dtype), written_BKD)


INTERVENTION = Kind(
    apply=apply, options=CopyOptions, number="copy", taps=("result",), parameters=False, reads_pattern=True
)
