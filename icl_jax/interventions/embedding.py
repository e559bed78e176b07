"""The residual stream before the first layer, in place of what is there: a head reads, or a layer begins with, tokens.

own: at the same position; previous: at the position before, the first its own, which is what a perfect previous-token
head carries. At ``k_input`` of a later layer, own takes K-composition away and leaves queries and values.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from icl_jax.config.axes import ACTIVATION_AXES
from icl_jax.config.interventions import Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingOptions(Options):
    """The embedding in place of what is there."""

    embedding: Literal["own", "previous"]
    """At which position."""


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    import jax.numpy as jnp

    assert isinstance(at.options, EmbeddingOptions)
    resid_BTD = at.embedding()
    if at.options.embedding == "previous":
        resid_BTD = jnp.concatenate([resid_BTD[:, :1], resid_BTD[:, :-1]], axis=1)
    return jnp.broadcast_to(resid_BTD[:, :, None] if value.ndim == 4 else resid_BTD, value.shape)


INTERVENTION = Kind(
    apply=apply, options=EmbeddingOptions, parameters=False,
    taps=tuple(name for name, axes in ACTIVATION_AXES.items() if axes.endswith("D")),
)  # fmt: skip
