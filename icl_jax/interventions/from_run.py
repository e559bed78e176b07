"""What a snapshot of another run has there: an activation on the same tokens, or a parameter.

It is a constant: no gradient reaches the other model. Layers and heads are those of the same number, unless
``from_layer`` and ``from_head`` name others.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from icl_jax.config.checks import require
from icl_jax.config.interventions import Intervention, Kind, Options

if TYPE_CHECKING:
    import jax

    from icl_jax.config.schema import Config
    from icl_jax.interventions.at import At


@dataclass(frozen=True, kw_only=True, slots=True)
class FromRunOptions(Options):
    """What another run has there."""

    from_run: str
    """Its run directory, or RUN/members/K."""
    step: int
    """Of the snapshot."""
    from_layer: int = -1
    """Its layer, for all layers here; -1: the same."""
    from_head: int = -1
    """Its head, for all heads here; -1: the same."""

    def check(self, one: Intervention, config: "Config", where: str) -> None:
        require(bool(self.from_run), f"{where}.from_run", self.from_run, "must be a run directory")
        require(self.step >= 0, f"{where}.step", self.step, "must be 0 or more")
        for name in ("from_layer", "from_head"):
            require(getattr(self, name) >= -1, f"{where}.{name}", getattr(self, name), "must be -1 or more")


def apply(value: "jax.Array", at: "At") -> "jax.Array":
    return at.donor()


INTERVENTION = Kind(apply=apply, options=FromRunOptions)
