"""A forward pass whose attention patterns and norm scales are kept, so that everything after them is linear.

With patterns and scales held fixed, an attention-only model without biases of values and outputs, norms of what it
writes and a cap on logits is a sum of linear maps of its embeddings: the paths of Elhage et al. 2021. A norm is then
``x -> scale[position] * centred(x) * weight``, with `centred` the identity but for LayerNorm; the scale is that of the
run.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations
from icl_jax.model.forward import embedded, positions_TD, unembedding_DV, with_bias
from icl_jax.model.params import Params, per_head
from icl_jax.model.tokens import takes_tokens


class FrozenRun(NamedTuple):
    """What is kept. Scales are 1 for a model without norms."""

    logits: Float[Array, "B T V"]
    embed: Float[Array, "B T D"]
    """The residual stream before the first layer: tokens, and standard positions."""
    patterns: tuple[Float[Array, "B H T T"], ...]
    scales: tuple[Float[Array, "B T"], ...]
    """Of the norm before each layer's attention."""
    final_scale: Float[Array, "B T"]
    attn_scores: tuple[Float[Array, "B H T T"], ...]


@takes_tokens
def frozen_run(params: Params, tokens: Int[Array, "B T"], config: ModelConfig) -> FrozenRun:
    """Run the model once. The caller sees to it that it is linear: see `attention_only` of the measurements."""
    return freeze(Activations(params, tokens, config, ("resid_pre", "pattern", "attn_scores", "resid_post")))


def freeze(seen: Activations) -> FrozenRun:
    """What `frozen_run` keeps, of a model that has run."""
    config, n = seen.config, seen.config.n_layers
    embed = seen["resid_pre", 0] if n else embedding(seen.params, seen.tokens, config)
    last = seen["resid_post", n - 1] if n else embed
    return FrozenRun(
        logits=seen.logits,
        embed=embed,
        patterns=tuple(seen["pattern", layer] for layer in range(n)),
        scales=tuple(norm_scale(seen["resid_pre", layer], config) for layer in range(n)),
        final_scale=norm_scale(last, config),
        attn_scores=tuple(seen["attn_scores", layer] for layer in range(n)),
    )


@takes_tokens
def embedding(params: Params, tokens: Int[Array, "B T"], config: ModelConfig) -> Float[Array, "B T D"]:
    """The residual stream before the first layer: tokens, and standard positions."""
    return embedded(params, tokens, positions_TD(params.get("W_pos"), tokens.shape[1], config), config)


def norm_scale(x: Float[Array, "B T D"], config: ModelConfig) -> Float[Array, "B T"]:
    """What a norm divides by, inverted."""
    if config.norm == "none":
        return jnp.ones(x.shape[:-1], x.dtype)
    x = centred(x, config)
    return jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1) + config.norm_eps)


def centred(x: Float[Array, "*B D"], config: ModelConfig) -> Float[Array, "*B D"]:
    """The linear part of a norm but for its weight: LayerNorm subtracts the mean over D."""
    return x - jnp.mean(x, axis=-1, keepdims=True) if config.norm == "layernorm" else x


def frozen_norm(
    x: Float[Array, "*P B T D"], scale: Float[Array, "B T"], weight: Float[Array, " D"] | None, config: ModelConfig
) -> Float[Array, "*P B T D"]:
    """A norm at the scale of the run: linear in x, so the parts of a residual stream may go through it one by one."""
    if weight is None:
        return x
    return centred(x, config) * jnp.expand_dims(scale[..., None], tuple(range(x.ndim - 3))) * _last_axis(weight, x.ndim)


def _last_axis(weight: Array, ndim: int) -> Array:
    return weight.reshape((1,) * (ndim - 1) + weight.shape)


def head_results(
    result: Float[Array, "B T H D"], layer: Params, config: ModelConfig
) -> tuple[Float[Array, "B T H D"], Float[Array, "B T D"] | None]:
    """What each head of a layer adds to the residual stream, and what b_O does; by a norm of the sum at its scale.

    `result`: the layer's activation of that name; `layer`: its parameters.
    """
    b_O = layer.get("b_O")
    if "ln1_post_w" in layer:
        added = with_bias(jnp.sum(result, axis=2), b_O)
        scale, weight = norm_scale(added, config), layer["ln1_post_w"]
        result = jnp.moveaxis(frozen_norm(jnp.moveaxis(result, 2, 0), scale, weight, config), 0, 2)
        b_O = (
            None if b_O is None else frozen_norm(jnp.broadcast_to(b_O[None, None], added.shape), scale, weight, config)
        )
    elif b_O is not None:
        b_O = jnp.broadcast_to(b_O[None, None], (*result.shape[:2], result.shape[-1]))
    return result, b_O


def layer_weight(params: Params, name: str, layer: int) -> Array | None:
    """One layer's weight of a norm or a bias, None where the model has none."""
    return params[name][layer] if name in params else None


def head_outputs(
    params: Params, run: FrozenRun, layer: int, x: Float[Array, "*P B T D"], config: ModelConfig
) -> Float[Array, "*P H B T D"]:
    """What each head of a layer writes when its values read x in place of the residual stream, patterns kept."""
    x = frozen_norm(x, run.scales[layer], layer_weight(params, "ln1_w", layer), config)
    v = jnp.einsum("...BKD,HDE->...HBKE", x, per_head(params, config)["W_V"][layer])
    return jnp.einsum("BHQK,...HBKE,HED->...HBQD", run.patterns[layer], v, params["W_O"][layer], optimize="optimal")


def to_logits(params: Params, run: FrozenRun, x: Float[Array, "*P B T D"], config: ModelConfig) -> Array:
    """Logits of a part of the last residual stream, at the final norm's scale of the run."""
    x = frozen_norm(x, run.final_scale, params.get("ln_final_w"), config)
    return jnp.einsum("...BTD,DV->...BTV", x, unembedding_DV(params))
