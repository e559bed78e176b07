"""The value times a number."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_jax.config.interventions import Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleOptions(Options):
    """The value times a number."""

    scale: float
    """The number."""


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    return value * at.number.astype(value.dtype)


INTERVENTION = Kind(apply=apply, options=ScaleOptions, number="scale")
