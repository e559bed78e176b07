"""The parameters, each declared once: a dict of arrays stacked over layers, named and shaped as in TransformerLens.

Whatever else has to know about one (its start, weight decay, sharding, counts, FLOPs, export, the table in
docs/model.md) reads the declaration, which Flax keeps as the metadata of the `nnx.Param`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from icl_jax.config import ModelConfig

_T = TypeVar("_T")

Params = dict[str, jax.Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What holds of a parameter besides its value: metadata of its `nnx.Param`."""

    axes: str
    """A letter of icl_jax/config/axes.py per axis; "N" is first where it is stacked over layers."""
    shape: tuple[int, ...]
    decayed: bool
    """Weight decay shrinks it."""
    sharded: bool
    """Fully sharded training may cut it, along its longest axis that divides evenly and is not the layers'."""
    multiplies: bool
    """Every token is multiplied by it: two floating-point operations for each of its numbers."""
    hooked: str | None
    """TransformerLens's name, `{}` for the layer; None where it has none."""

    @property
    def is_stacked(self) -> bool:
        """Whether it has one entry per layer."""
        return self.axes.startswith("N")


_BIASES = {
    "b_Q": ("N H E", "blocks.{}.attn.b_Q"),
    "b_K": ("N G E", "blocks.{}.attn.b_K"),
    "b_V": ("N G E", "blocks.{}.attn.b_V"),
    "b_O": ("N D", "blocks.{}.attn.b_O"),
    "b_in": ("N M", "blocks.{}.mlp.b_in"),
    "b_gate": ("N M", None),
    "b_out": ("N D", "blocks.{}.mlp.b_out"),
    "b_U": ("V", "unembed.b_U"),
}


class Parameters(nnx.Module):
    """Declares and initialises the parameters; `icl_jax.Transformer` adds the forward pass.

    Weights are normal with standard deviation ``config.init_std``, norm weights 1 and smear alphas 0, so that a
    smeared head begins with the mean of its own and the previous key (the paper does not disclose its start).
    No array has size zero: a model without layers simply lacks the per-layer arrays. Biases, where there are any, start
    at 0; norms have none, since a bias of a norm is one of whatever reads it. Without `rngs` there are shapes alone.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs | None) -> None:
        self.config = config
        sizes = {
            "N": config.n_layers, "D": config.d_model, "H": config.n_heads, "G": config.key_heads,
            "E": config.head_width, "M": config.d_mlp, "T": config.n_ctx, "V": config.vocab_size,
        }  # fmt: skip

        def declare(
            axes: str, hooked: str | None, init: Callable[[tuple[int, ...]], jax.Array], *,
            decayed: bool, sharded: bool, multiplies: bool = False,
        ) -> nnx.Param[jax.Array]:  # fmt: skip
            shape = tuple(sizes[letter] for letter in axes.split())
            declaration = Declaration(
                axes=axes, shape=shape, decayed=decayed, sharded=sharded, multiplies=multiplies, hooked=hooked
            )
            metadata = {f.name: getattr(declaration, f.name) for f in fields(declaration) if f.name != "shape"}
            value: Any = init(shape) if rngs else jax.ShapeDtypeStruct(shape, jnp.float32)
            return nnx.Param(value, **metadata)

        def weight(axes: str, hooked: str, *, multiplies: bool = True) -> nnx.Param[jax.Array]:
            return declare(axes, hooked, normal, decayed=True, sharded=True, multiplies=multiplies)

        def norm(axes: str, hooked: str | None) -> nnx.Param[jax.Array]:
            return declare(axes, hooked, jnp.ones, decayed=False, sharded=False)

        def bias(axes: str, hooked: str | None) -> nnx.Param[jax.Array]:
            return declare(axes, hooked, jnp.zeros, decayed=False, sharded=False)

        def normal(shape: tuple[int, ...]) -> jax.Array:
            assert rngs
            return jnp.float32(config.init_std) * jax.random.normal(rngs.params(), shape, jnp.float32)

        # In this order: each weight takes the next numbers of the stream.
        self.W_E = weight("V D", "embed.W_E", multiplies=config.tied_unembedding)
        if config.positions != "rotary" and config.position_embedding == "learned":
            self.W_pos = weight("T D", "pos_embed.W_pos", multiplies=False)
        if config.n_layers > 0:
            self.W_Q = weight("N H D E", "blocks.{}.attn.W_Q")
            self.W_K = weight("N G D E", "blocks.{}.attn.W_K")
            self.W_V = weight("N G D E", "blocks.{}.attn.W_V")
            self.W_O = weight("N H E D", "blocks.{}.attn.W_O")
            if config.smeared_keys:
                # The keys' mixing weight before the sigmoid.
                self.smear_alpha = declare("N H", None, jnp.zeros, decayed=False, sharded=False)
            if config.qk_norm != "none":
                self.q_norm_w = norm("N E" if config.qk_norm == "head" else "N H E", None)
                self.k_norm_w = norm("N E" if config.qk_norm == "head" else "N G E", None)
            if config.d_mlp:
                self.W_in = weight("N D M", "blocks.{}.mlp.W_in")
                self.W_out = weight("N M D", "blocks.{}.mlp.W_out")
                if config.gated_mlp:
                    self.W_gate = weight("N D M", "blocks.{}.mlp.W_gate")
            if config.norm != "none" and config.norm_position != "post":
                self.ln1_w = norm("N D", "blocks.{}.ln1.w")
                if config.d_mlp and config.parallel_residual != "one_norm":
                    self.ln2_w = norm("N D", "blocks.{}.ln2.w")
            if config.norm != "none" and config.norm_position != "pre":
                self.ln1_post_w = norm("N D", "blocks.{}.ln1_post.w")
                if config.d_mlp:
                    self.ln2_post_w = norm("N D", "blocks.{}.ln2_post.w")
            for name in config.biases:
                if name != "b_U":
                    setattr(self, name, bias(*_BIASES[name]))
        if config.smear_gate:
            # What the gate multiplies its input by, and what multiplies the gate: training begins without it.
            self.smear_gate_w = declare("D", None, jnp.zeros, decayed=False, sharded=False)
            self.smear_lambda = declare("", None, jnp.zeros, decayed=False, sharded=False)
        if config.norm != "none":
            self.ln_final_w = norm("D", "ln_final.w")
        if not config.tied_unembedding:
            self.W_U = weight("D V", "unembed.W_U")
        if "b_U" in config.biases:
            self.b_U = bias(*_BIASES["b_U"])

    @property
    def params(self) -> Params:
        """The arrays by name: what every function of `(params, tokens, config)` takes."""
        params: Params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        return params


@lru_cache(maxsize=64)
def declarations(config: ModelConfig) -> dict[str, Declaration]:
    """Every parameter of a model, by its name. Nothing is allocated."""
    found: dict[str, Declaration] = {}
    for name, value in vars(Parameters(config, None)).items():
        if isinstance(value, nnx.Param):
            known = value.get_metadata()
            metadata = {f.name: known[f.name] for f in fields(Declaration) if f.name != "shape"}
            found[name] = Declaration(shape=value.shape, **metadata)
    return found


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter."""
    return {name: declared.shape for name, declared in declarations(config).items()}


def layer_names(config: ModelConfig) -> tuple[str, ...]:
    """Names of the parameters that are stacked over layers."""
    return tuple(name for name, declared in declarations(config).items() if declared.is_stacked)


def per_head(params: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Parameters, of NumPy or JAX, any axes in front, with keys' and values' repeated for the heads that share them."""
    n_shared = config.n_heads // config.key_heads
    axes = {"W_K": -3, "W_V": -3, "b_K": -2, "b_V": -2} if n_shared > 1 else {}
    return {name: value.repeat(n_shared, axis=axes[name]) if name in axes else value for name, value in params.items()}


def init_params(config: ModelConfig, seed: int | jax.Array) -> Params:
    """Initial parameters, float32, a pure function of the config and the seed."""
    return run_once(lambda: Parameters(config, nnx.Rngs(params=jax.random.key(seed))).params)


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
