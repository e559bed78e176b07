"""Other runs that interventions take from."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import Config, ModelConfig, UserError
from icl_jax.config.axes import ACTIVATION_AXES
from icl_jax.config.interventions import Intervention, axes_of
from icl_jax.model.forward import run_with_cache
from icl_jax.model.params import Params, declarations
from icl_jax.rundir import RunDir


@dataclass(frozen=True)
class Donor:
    """A snapshot of another run, and which layer and head of it stand here."""

    config: ModelConfig
    params: dict[str, np.ndarray]
    """Of the whole model, or the one parameter that is taken."""
    layer: int
    """-1: the same as here."""
    head: int

    def activations(self, params: Params, tokens: jax.Array, name: str) -> list[jax.Array]:
        """Of each of its layers."""
        constant = {key: jax.lax.stop_gradient(jnp.asarray(value)) for key, value in params.items()}
        _, cache = run_with_cache(constant, tokens, self.config, (name,))
        return [cache[name, layer] for layer in range(self.config.n_layers)]

    def of_layer(self, activations: list[jax.Array], layer: Any, name: str, config: ModelConfig) -> jax.Array:
        """What stands in for a layer here, which may be traced."""
        if self.layer >= 0 or isinstance(layer, int):
            value = activations[self.layer if self.layer >= 0 else layer]
        else:
            value = jnp.stack(activations)[layer]
        return self._head(value, ACTIVATION_AXES[name], config.n_heads)

    def parameter(self, params: Params, name: str, shape: tuple[int, ...]) -> jax.Array:
        """Its value in place of a parameter of this shape here."""
        value, axes = jax.lax.stop_gradient(jnp.asarray(params[name])), declarations(self.config)[name].axes
        if axes.startswith("N"):
            take = (
                np.minimum(np.arange(shape[0]), value.shape[0] - 1) if self.layer < 0 else np.full(shape[0], self.layer)
            )
            value = value[take]
        letters = axes.split()
        return self._head(value, axes, shape[1] if {"H", "G"} & set(letters) else 0)

    def _head(self, value: jax.Array, axes: str, n_heads: int) -> jax.Array:
        letters = axes.split()
        if self.head < 0 or not {"H", "G"} & set(letters):
            return value
        axis = next(i for i, letter in enumerate(letters) if letter in "HG")
        one = jnp.take(value, jnp.array([self.head]), axis=axis)
        return jnp.repeat(one, n_heads, axis=axis)


def open_donor(one: Intervention, config: Config, where: str) -> Donor:
    """The run that an intervention takes from. Raises UserError where it has no such snapshot, or other shapes."""
    options: Any = one.options
    run = RunDir.open(options.from_run).one()
    theirs, ours = run.config.model, config.model
    is_activation = one.at in ACTIVATION_AXES
    name = f"{where}.from_run = {options.from_run!r}"

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise UserError(f"{name}: {what}")

    if is_activation:
        need(
            theirs.vocab_size == ours.vocab_size,
            f"has model.vocab_size = {theirs.vocab_size}: must be {ours.vocab_size}",
        )
        need(theirs.n_ctx >= ours.n_ctx, f"has model.n_ctx = {theirs.n_ctx}: must be {ours.n_ctx} or more")
    else:
        need(one.at in declarations(theirs), f"has no parameter {one.at}")
    layers = [options.from_layer] if options.from_layer >= 0 else list(one.layers) or list(range(ours.n_layers))
    if is_activation or axes_of(one.at, ours).startswith("N"):
        need(max(layers) < theirs.n_layers, f"has {theirs.n_layers} layers: there is no layer {max(layers)}")
    letters = axes_of(one.at, ours).split()
    has_heads = bool({"H", "G"} & set(letters))
    n_theirs = theirs.n_heads if "H" in letters else theirs.key_heads
    n_ours = ours.n_heads if "H" in letters else ours.key_heads
    if has_heads and options.from_head >= 0:
        need(options.from_head < n_theirs, f"has {n_theirs} heads: there is no head {options.from_head}")
    elif has_heads:
        need(n_theirs == n_ours, f"has {n_theirs} heads: must be {n_ours}, or give from_head")
    widths = {"D": "d_model", "E": "head_width", "M": "d_mlp", "V": "vocab_size"}
    for field in (widths[letter] for letter in letters if letter in widths):
        there, here = getattr(theirs, field), getattr(ours, field)
        need(there == here, f"has model.{field} = {there}: must be {here} for {one.at}")
    params = run.load_params(options.step)
    kept = params if is_activation else {one.at: params[one.at]}
    return Donor(theirs, {key: np.asarray(value) for key, value in kept.items()}, options.from_layer, options.from_head)
