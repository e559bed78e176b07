"""What an intervention knows of the place where it is made."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax

    from icl_jax.config.interventions import Options
    from icl_jax.config.model import ModelConfig
    from icl_jax.model.params import Params


class At(NamedTuple):
    """Where, in one forward pass."""

    name: str
    """Activation or parameter."""
    layer: Any
    """Of an activation: a number, traced where layers are scanned."""
    options: "Options"
    number: "jax.Array"
    """The option that is an argument of the program."""
    config: "ModelConfig"
    params: "Params"
    tokens: "jax.Array"
    """[B, T], those of the rows that are computed together; [0, T] at a parameter."""
    pattern: "jax.Array | None"
    """[B, H, Q, K] of this layer as it mixes values, for kinds that read it."""
    embedding: Callable[[], "jax.Array"]
    """[B, T, D]: the residual stream before the first layer."""
    donor: Callable[[], "jax.Array"]
    """What another run's snapshot has here, of the shape of the value."""
    mean: Callable[["jax.Array"], "jax.Array"]
    """Mean over all rows of the step, along the first axis, which stays with length 1."""
    random: Callable[[tuple[int, ...]], "jax.Array"]
    """Normal numbers of this step and place, float32; of an activation each row has its own, whatever device has it."""
