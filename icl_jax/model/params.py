"""The parameters: a dict of arrays stacked over layers, named and shaped as in TransformerLens.

========  =====  ==========================================================
W_E       V D    embedding
W_pos     T D    learned positions (shortformer and standard only)
W_Q       N H D E  query; W_K key, W_V value likewise
W_O       N H E D  output
smear_alpha  N H  smeared keys' mixing weight before the sigmoid
W_in      N D M  MLP in; W_out N M D MLP out
ln1_w     N D    norm before attention; ln2_w before the MLP
ln_final_w  D    norm before the unembedding
W_U       D V    unembedding (absent when tied)
========  =====  ==========================================================

No array has size zero: a model without layers simply lacks the per-layer arrays. There are no biases.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from icl_jax.config import ModelConfig

_T = TypeVar("_T")

Params = dict[str, jax.Array]


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter."""
    n, d, h, e = config.n_layers, config.d_model, config.n_heads, config.d_head
    shapes: dict[str, tuple[int, ...]] = {"W_E": (config.vocab_size, d)}
    if config.positions != "rotary" and config.position_embedding == "learned":
        shapes["W_pos"] = (config.n_ctx, d)
    if n > 0:
        shapes |= {"W_Q": (n, h, d, e), "W_K": (n, h, d, e), "W_V": (n, h, d, e), "W_O": (n, h, e, d)}
        if config.smeared_keys:
            shapes["smear_alpha"] = (n, h)
        if config.d_mlp:
            shapes |= {"W_in": (n, d, config.d_mlp), "W_out": (n, config.d_mlp, d)}
        if config.norm != "none":
            shapes["ln1_w"] = (n, d)
            if config.d_mlp:
                shapes["ln2_w"] = (n, d)
    if config.norm != "none":
        shapes["ln_final_w"] = (d,)
    if not config.tied_unembedding:
        shapes["W_U"] = (d, config.vocab_size)
    return shapes


def layer_names(config: ModelConfig) -> tuple[str, ...]:
    """Names of the parameters that are stacked over layers."""
    outside = {"W_E", "W_pos", "ln_final_w", "W_U"}
    return tuple(name for name in param_shapes(config) if name not in outside)


class Transformer(nnx.Module):
    """Owns and initialises the parameters; it is split once and the training step sees the plain dict.

    Weights are normal with standard deviation ``config.init_std``, norm weights 1 and smear alphas 0, so that a
    smeared head begins with the mean of its own and the previous key (the paper does not disclose its start).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        for name, shape in param_shapes(config).items():
            if name == "smear_alpha":
                value = jnp.zeros(shape, jnp.float32)
            elif name.startswith("ln"):
                value = jnp.ones(shape, jnp.float32)
            else:
                value = jnp.float32(config.init_std) * jax.random.normal(rngs.params(), shape, jnp.float32)
            setattr(self, name, nnx.Param(value))


def init_params(config: ModelConfig, seed: int) -> Params:
    """Initial parameters, float32, a pure function of the config and the seed."""

    def init() -> Params:
        params: Params = nnx.to_pure_dict(nnx.state(Transformer(config, nnx.Rngs(params=seed)), nnx.Param))
        return params

    return run_once(init)


def run_once(function: Callable[[], _T], **options: Any) -> _T:
    """What a function returns, compiled as for `jax.jit(function, **options)`, or inlined into what is being traced.

    XLA's highest level of optimisation takes seven times as long to compile random numbers for a CPU, for the same
    bits: of what runs once, that would be most of the time.
    """
    if isinstance(jnp.zeros(()), jax.core.Tracer):
        return function()
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 2}
    return jax.jit(function, **options)()


def n_params(config: ModelConfig) -> int:
    """Number of trained numbers."""
    return sum(math.prod(shape) for shape in param_shapes(config).values())
