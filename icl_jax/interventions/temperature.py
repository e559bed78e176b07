"""Attention scores divided by a number: above 1 patterns are flatter, below it sharper."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_jax.config.checks import require
from icl_jax.config.interventions import Intervention, Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.config.schema import Config
    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureOptions(Options):
    """Attention scores divided by a number."""

    temperature: float
    """The number."""

    def check(self, one: Intervention, config: "Config", where: str) -> None:
        require(self.temperature > 0, f"{where}.temperature", self.temperature, "must be greater than 0")


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    return value / at.number.astype(value.dtype)


INTERVENTION = Kind(
    apply=apply, options=TemperatureOptions, number="temperature", taps=("attn_scores",), parameters=False
)
