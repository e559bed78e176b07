"""The value and normal noise, drawn anew at each step: of the seed, the step and the row alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_jax.config.checks import require
from icl_jax.config.interventions import Intervention, Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.config.schema import Config
    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseOptions(Options):
    """The value and noise."""

    noise: float
    """Standard deviation."""

    def check(self, one: Intervention, config: "Config", where: str) -> None:
        require(self.noise > 0, f"{where}.noise", self.noise, "must be greater than 0")


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    return value + (at.number * at.random(value.shape)).astype(value.dtype)


INTERVENTION = Kind(apply=apply, options=NoiseOptions, number="noise")
