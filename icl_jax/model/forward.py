"""The forward pass, with named taps.

A tap is a function ``tap(name, layer, value) -> value`` that sees, and may replace, the activations

==============  =======  ==========================================
resid_pre       B T D    residual stream entering the layer
q, k, v         B H T E  after W_Q, W_K, W_V, rotation and smearing
attn_scores     B H Q K  before the softmax, minus infinity above the diagonal
pattern         B H Q K  after it
z               B H T E  values mixed by the pattern
result          B T H D  each head's output, after W_O
resid_mid       B T D    after attention
mlp_out         B T D    the MLP's output (models with MLPs)
resid_post      B T D    residual stream leaving the layer
==============  =======  ==========================================

Not asked for, they cost nothing: a pattern and per-head results are materialised for a tap that may look at them only.
"""

from collections.abc import Callable, Container
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.model.attention import AttentionFn, attend, attention_fn, attn_scores
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.linear import linear
from icl_jax.model.params import Params, layer_names
from icl_jax.model.positions import rotate, sinusoidal
from icl_jax.model.precision import einsum
from icl_jax.model.tokens import takes_tokens

TapFn = Callable[[str, int, jax.Array], jax.Array]
GatherFn = Callable[[str, jax.Array], jax.Array]

NORM_EPS = 1e-5
ACTIVATIONS = (
    "resid_pre", "q", "k", "v", "attn_scores", "pattern", "z", "result", "resid_mid", "mlp_out", "resid_post",
)  # fmt: skip
"""The names of all of them."""


def normalise(
    x: Float[Array, "B T D"], weight: Float[Array, " D"] | None, config: ModelConfig
) -> Float[Array, "B T D"]:
    """LayerNorm or RMSNorm over D with a trained scale and no bias, in float32; identity for "none"."""
    if weight is None:
        return x
    wide = x.astype(jnp.float32)
    if x.shape[0] == 1:  # XLA's sums on a CPU are 3 to 14 times slower for a batch of one row than without that axis
        wide = wide[0]
    if config.norm == "layernorm":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + NORM_EPS)
    weight = jnp.expand_dims(weight.astype(jnp.float32), range(wide.ndim - 1))
    return (wide * scale * weight).astype(x.dtype).reshape(x.shape)


def smear(k: Float[Array, "B H T E"], alpha: Float[Array, " H"]) -> Float[Array, "B H T E"]:
    """Mix each key with its predecessor: ``s k_j + (1 - s) k_(j-1)``, s = sigmoid(alpha) per head; key 0 stays.

    Source: Olsson et al. 2022, Argument 2.
    """
    own = jax.nn.sigmoid(alpha)[None, :, None, None].astype(k.dtype)
    previous = jnp.concatenate([k[:, :, :1], k[:, :, :-1]], axis=2)
    return own * k + (1 - own) * previous


def positions_TD(W_pos: jax.Array | None, n_ctx: int, config: ModelConfig) -> jax.Array | None:
    """The position embeddings of the first n_ctx positions, or None for rotary; `W_pos` if they are learned."""
    if config.positions == "rotary":
        return None
    table = sinusoidal(config.n_ctx, config.d_model) if W_pos is None else W_pos
    return jnp.asarray(table[:n_ctx], config.compute_dtype)


def _block(
    resid: jax.Array,
    layer: Params,
    pos_TD: jax.Array | None,
    config: ModelConfig,
    attend_fn: AttentionFn,
    product: Callable[[jax.Array, jax.Array], jax.Array],
    tap: TapFn | None,
    seen: Container[str],
    index: int,
) -> jax.Array:
    def see(name: str, value: jax.Array) -> jax.Array:
        return tap(name, index, value) if tap is not None and name in seen else value

    resid = see("resid_pre", resid)
    x_BTD = normalise(resid, layer.get("ln1_w"), config)
    x_qk_BTD = x_BTD if pos_TD is None or config.positions != "shortformer" else x_BTD + pos_TD[None]
    q, k = (einsum("BTD,HDE->BHTE", x_qk_BTD, layer[name]) for name in ("W_Q", "W_K"))
    v = einsum("BTD,HDE->BHTE", x_BTD, layer["W_V"])
    if config.positions == "rotary":
        q, k = rotate(q), rotate(k)
    if config.smeared_keys:
        k = smear(k, layer["smear_alpha"])
    q, k, v = see("q", q), see("k", k), see("v", v)
    if tap is not None and ("pattern" in seen or "attn_scores" in seen):
        scores_BHQK = see("attn_scores", attn_scores(q, k))
        z_BHTE = attend(see("pattern", jax.nn.softmax(scores_BHQK, axis=-1)), v)
    else:
        z_BHTE = attend_fn(q, k, v)
    z_BHTE = see("z", z_BHTE)
    if tap is not None and "result" in seen:
        attn_out = jnp.sum(see("result", einsum("BHTE,HED->BTHD", z_BHTE, layer["W_O"])), axis=2)
    else:
        attn_out = einsum("BHTE,HED->BTD", z_BHTE, layer["W_O"])
    return _after_attention(see("resid_mid", resid + attn_out), layer, config, product, see)


def _after_attention(
    resid: jax.Array,
    layer: Params,
    config: ModelConfig,
    product: Callable[[jax.Array, jax.Array], jax.Array],
    see: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:
    if config.d_mlp:
        x_BTD = normalise(resid, layer.get("ln2_w"), config)
        hidden_BTM = jax.nn.gelu(product(x_BTD, layer["W_in"]), approximate=True)
        resid = resid + see("mlp_out", product(hidden_BTM, layer["W_out"]))
    return see("resid_post", resid)


@takes_tokens
def final_resid(
    params: Params,
    tokens: Int[Array, "B T"],
    config: ModelConfig,
    *,
    tap: TapFn | None = None,
    seen: Container[str] = ACTIVATIONS,
    start: tuple[int, Float[Array, "B T D"]] | None = None,
    gather: GatherFn | None = None,
    execution: Execution | None = None,
) -> Float[Array, "B T D"]:
    """The residual stream after the last layer and the final norm: what the unembedding multiplies.

    `seen`: the activations that the tap is called for. `start`, a layer and its `resid_mid`: only what lies after it is
    computed, and of the tokens only their number is read. `gather` makes a whole parameter out of this device's shard,
    layer by layer (fully sharded training). `execution`: None resolves that of JAX's default platform.
    """
    gather = gather or (lambda _name, value: value)
    execution = execution or resolve(config)
    attend_fn = attention_fn(execution)
    product = linear if execution.own_gradients else partial(einsum, "BTD,DM->BTM")
    dtype = jnp.dtype(config.compute_dtype)

    def load(name: str, value: jax.Array) -> jax.Array:
        return gather(name, value).astype(dtype)

    # Looked up before it is rounded: the gradients of one token's many places then add up in float32.
    resid = jnp.take(gather("W_E", params["W_E"]), tokens, axis=0).astype(dtype)
    W_pos = load("W_pos", params["W_pos"]) if "W_pos" in params else None
    pos_TD = positions_TD(W_pos, tokens.shape[1], config)
    if config.positions == "standard" and pos_TD is not None:
        resid = resid + pos_TD[None]
    stacked = {name: params[name] for name in layer_names(config)}

    def block(resid: jax.Array, layer: Params, index: int = -1) -> jax.Array:
        whole = {name: load(name, value) for name, value in layer.items()}
        return _block(resid, whole, pos_TD, config, attend_fn, product, tap, seen, index)

    if start is not None:
        first, resid = start
        layer = {name: load(name, value[first]) for name, value in stacked.items()}
        resid = _after_attention(resid, layer, config, product, lambda _name, value: value)
        for index in range(first + 1, config.n_layers):
            resid = block(resid, {name: value[index] for name, value in stacked.items()}, index)
    elif tap is not None or not execution.scan_layers:
        for index in range(config.n_layers):
            resid = block(resid, {name: value[index] for name, value in stacked.items()}, index)
    else:
        one = jax.checkpoint(block) if execution.remat else block
        resid, _ = jax.lax.scan(lambda x, layer: (one(x, layer), None), resid, stacked)
    return normalise(resid, params.get("ln_final_w"), config)


def unembedding_DV(params: Params) -> jax.Array:
    """W_U, or the transposed embedding where it is tied."""
    return params["W_U"] if "W_U" in params else params["W_E"].T


@takes_tokens
def forward(
    params: Params,
    tokens: Int[Array, "B T"],
    config: ModelConfig,
    *,
    tap: TapFn | None = None,
    seen: Container[str] = ACTIVATIONS,
) -> Float[Array, "B T V"]:
    """Logits, float32, differentiable in either mode. Training never calls this: see `icl_jax.model.loss`."""
    x_BTD = final_resid(params, tokens, config, tap=tap, seen=seen)
    W_U = unembedding_DV(params).astype(x_BTD.dtype)
    return einsum("BTD,DV->BTV", x_BTD, W_U, preferred_element_type=jnp.float32)


@takes_tokens
def run_with_cache(
    params: Params, tokens: Int[Array, "B T"], config: ModelConfig, names: Container[str] = ACTIVATIONS
) -> tuple[Float[Array, "B T V"], dict[tuple[str, int], jax.Array]]:
    """Logits, and the activations of these names under (name, layer)."""
    cache: dict[tuple[str, int], jax.Array] = {}

    def keep(name: str, layer: int, value: jax.Array) -> jax.Array:
        cache[name, layer] = value
        return value

    return forward(params, tokens, config, tap=keep, seen=names), cache
