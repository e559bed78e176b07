"""The forward pass, with named taps.

A tap is a function ``tap(name, layer, value) -> value`` that sees, and may replace, the activations

==============  =======  ==========================================
q_input,        B T H D  residual stream that each head's queries, keys or values are made of, before the norm; of keys
k_input,                 and values that heads share G in place of H. Only where the tap asks for it by name
v_input
resid_pre       B T D    residual stream entering the layer
q, k, v         B H T E  after W_Q, W_K, W_V, biases, norms, rotation, offset and smearing; keys and values that
                         heads share are there for each of them
attn_scores     B H Q K  before the softmax, minus infinity where nothing is seen
pattern         B H Q K  after it
z               B H T E  values mixed by the pattern
result          B T H D  each head's output, after W_O; before b_O and a norm of what attention writes
resid_mid       B T D    after attention (also where the MLP does not read it: parallel residual)
mlp_out         B T D    what the MLP writes (models with MLPs)
resid_post      B T D    residual stream leaving the layer
==============  =======  ==========================================

Not asked for, they cost nothing: a pattern and per-head results are materialised for a tap that may look at them only.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.config.axes import ACTIVATION_AXES, INPUTS
from icl_jax.model.attention import Scores, attend, attention_fn, attn_scores
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.linear import linear
from icl_jax.model.norm import normalise, normalise_heads
from icl_jax.model.params import Params, layer_names
from icl_jax.model.positions import rotary_frequencies, rotate, sinusoidal
from icl_jax.model.precision import einsum
from icl_jax.model.previous_token import gated_smear, mixed_keys
from icl_jax.model.tokens import takes_tokens

TapFn = Callable[[str, Any, jax.Array], jax.Array]
Start = (
    tuple[int | jax.Array, Float[Array, "B T D"]] | tuple[int | jax.Array, Float[Array, "B T D"], Float[Array, "B T D"]]
)
GatherFn = Callable[[str, jax.Array], jax.Array]
BlockFn = Callable[[jax.Array, Params], jax.Array]
LayerFn = Callable[..., jax.Array]

ACTIVATIONS = tuple(name for name in ACTIVATION_AXES if name not in INPUTS)
"""The names of all of them but the three inputs, which nobody sees who does not name them."""
Seen = Container[str] | Mapping[int, frozenset[str]]
"""Names of activations, or of each layer its own."""


@takes_tokens
def embedded(
    params: Params, tokens: Int[Array, "B T"], pos_TD: jax.Array | None, config: ModelConfig,
    gather: GatherFn = lambda _name, value: value,
) -> Float[Array, "B T D"]:  # fmt: skip
    """The residual stream before the first layer: tokens, what a gate lets in of those before, standard positions."""
    dtype = jnp.dtype(config.compute_dtype)
    # Looked up before it is rounded: the gradients of one token's many places then add up in float32.
    resid = jnp.take(gather("W_E", params["W_E"]), tokens, axis=0).astype(dtype)
    if config.smear_gate:
        weight, scale = (gather(name, params[name]).astype(dtype) for name in ("smear_gate_w", "smear_lambda"))
        resid = gated_smear(resid, weight, scale, config)
    if config.positions == "standard" and pos_TD is not None:
        resid = resid + pos_TD[None]
    return resid


def positions_TD(W_pos: jax.Array | None, n_ctx: int, config: ModelConfig) -> jax.Array | None:
    """The position embeddings of the first n_ctx positions, or None for others; `W_pos` if they are learned."""
    if not config.has_position_embedding:
        return None
    table = sinusoidal(config.n_ctx, config.d_model) if W_pos is None else W_pos
    return jnp.asarray(table[:n_ctx], config.compute_dtype)


def _projected(x_BTD: jax.Array, layer: Params, letter: str) -> jax.Array:
    y_BHTE = einsum("BTD,HDE->BHTE", x_BTD, layer[f"W_{letter}"])
    return y_BHTE + layer[f"b_{letter}"][None, :, None, :] if f"b_{letter}" in layer else y_BHTE


def _projected_by_head(
    resid: jax.Array, layer: Params, letter: str, pos_TD: jax.Array | None, config: ModelConfig,
    see: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:  # fmt: skip
    """`_projected` of a stream that may be another for each head."""
    weight = layer[f"W_{letter}"]
    x_BTHD = jnp.broadcast_to(resid[:, :, None], (*resid.shape[:2], weight.shape[0], resid.shape[2]))
    x_BTHD = see(f"{letter.lower()}_input", x_BTHD)
    flat = x_BTHD.reshape(x_BTHD.shape[0], -1, x_BTHD.shape[3])
    x_BTHD = normalise(flat, layer.get("ln1_w"), config).reshape(x_BTHD.shape)
    if pos_TD is not None and config.positions == "shortformer" and letter != "V":
        x_BTHD = x_BTHD + pos_TD[None, :, None]
    y_BHTE = einsum("BTHD,HDE->BHTE", x_BTHD, weight)
    return y_BHTE + layer[f"b_{letter}"][None, :, None, :] if f"b_{letter}" in layer else y_BHTE


def _block(
    resid: jax.Array,
    layer: Params,
    pos_TD: jax.Array | None,
    config: ModelConfig,
    execution: Execution,
    tap: TapFn | None,
    seen: Container[str],
    index: int,
) -> jax.Array:
    def see(name: str, value: jax.Array) -> jax.Array:
        return tap(name, index, value) if tap is not None and name in seen else value

    resid = resid_pre = see("resid_pre", resid)
    x_BTD = normalise(resid, layer.get("ln1_w"), config)
    x_qk_BTD = x_BTD if pos_TD is None or config.positions != "shortformer" else x_BTD + pos_TD[None]

    def projected(x: jax.Array, letter: str) -> jax.Array:
        if tap is not None and f"{letter.lower()}_input" in seen:
            return _projected_by_head(resid_pre, layer, letter, pos_TD, config, see)
        return _projected(x, layer, letter)

    q, k = (projected(x_qk_BTD, letter) for letter in "QK")
    v = projected(x_BTD, "V")
    if config.qk_norm != "none":
        q, k = (normalise_heads(x, layer[name], config) for x, name in ((q, "q_norm_w"), (k, "k_norm_w")))
    if config.positions == "rotary":
        frequencies = rotary_frequencies(config, index)
        q, k = rotate(q, frequencies), rotate(k, frequencies)
    if config.key_heads < config.n_heads:
        k, v = (jnp.repeat(x, config.n_heads // config.key_heads, axis=1) for x in (k, v))
    k = mixed_keys(k, layer, config)
    q, k, v = see("q", q), see("k", k), see("v", v)
    scores = Scores.of(config, index)
    if tap is not None and ("pattern" in seen or "attn_scores" in seen):
        scores_BHQK = see("attn_scores", attn_scores(q, k, scores))
        z_BHTE = attend(see("pattern", jax.nn.softmax(scores_BHQK, axis=-1)), v)
    else:
        z_BHTE = attention_fn(execution, scores)(q, k, v)
    z_BHTE = see("z", z_BHTE)
    if tap is not None and "result" in seen:
        attn_out = jnp.sum(see("result", einsum("BHTE,HED->BTHD", z_BHTE, layer["W_O"])), axis=2)
    else:
        attn_out = einsum("BHTE,HED->BTD", z_BHTE, layer["W_O"])
    attn_out = written(attn_out, layer, "b_O", "ln1_post_w", config)
    return _after_attention(see("resid_mid", resid + attn_out), resid_pre, layer, config, execution, see)


def written(
    out_BTD: Float[Array, "B T D"], layer: Params, bias: str, norm: str, config: ModelConfig
) -> Float[Array, "B T D"]:
    """What attention or MLP adds to the residual stream: its output, a layer's bias and the norm, if it has them."""
    out_BTD = with_bias(out_BTD, layer.get(bias))
    return normalise(out_BTD, layer.get(norm), config)


def _solu(x: jax.Array) -> jax.Array:
    return x * jax.nn.softmax(x, axis=-1)


def _activate(x_BTM: jax.Array, config: ModelConfig) -> jax.Array:
    """The MLP's activation. SoLU: Elhage et al. 2022, "Softmax Linear Units"."""
    if config.activation == "solu_ln":
        x_BTM = _solu(x_BTM)
        layernorm = replace(config, norm="layernorm")
        return normalise(x_BTM, jnp.ones(x_BTM.shape[-1], jnp.float32), layernorm)
    forms: dict[str, Callable[[jax.Array], jax.Array]] = {
        "gelu_tanh": partial(jax.nn.gelu, approximate=True),
        "gelu": partial(jax.nn.gelu, approximate=False),
        "silu": jax.nn.silu,
        "relu": jax.nn.relu,
        "relu2": lambda x: jnp.square(jax.nn.relu(x)),
        "solu": _solu,
    }
    return forms[config.activation](x_BTM)


def _after_attention(
    resid: jax.Array,
    resid_pre: jax.Array,
    layer: Params,
    config: ModelConfig,
    execution: Execution,
    see: Callable[[str, jax.Array], jax.Array],
) -> jax.Array:
    """The MLP, which reads the stream behind attention, or in a parallel block the one before it."""
    if config.d_mlp:
        product = linear if execution.own_gradients else partial(einsum, "BTD,DM->BTM")

        def projected(x: jax.Array, letter: str) -> jax.Array:
            return with_bias(product(x, layer[f"W_{letter}"]), layer.get(f"b_{letter}"))

        read = resid if config.parallel_residual == "none" else resid_pre
        norm = "ln1_w" if config.parallel_residual == "one_norm" else "ln2_w"
        x_BTD = normalise(read, layer.get(norm), config)
        if config.gated_mlp:
            hidden_BTM = _activate(projected(x_BTD, "gate"), config) * projected(x_BTD, "in")
        else:
            hidden_BTM = _activate(projected(x_BTD, "in"), config)
        mlp_out = written(product(hidden_BTM, layer["W_out"]), layer, "b_out", "ln2_post_w", config)
        resid = resid + see("mlp_out", mlp_out)
    return see("resid_post", resid)


@takes_tokens
def final_resid(
    params: Params,
    tokens: Int[Array, "B T"],
    config: ModelConfig,
    *,
    tap: TapFn | None = None,
    seen: Seen = ACTIVATIONS,
    start: Start | None = None,
    scan_tap: bool = False,
    gather: GatherFn | None = None,
    execution: Execution | None = None,
) -> Float[Array, "B T D"]:
    """The residual stream after the last layer and the final norm: what the unembedding multiplies.

    `seen`: the activations that the tap is called for. `start`, a layer and its `resid_mid`, in a model with a parallel
    residual its `resid_pre` as well: only what lies after it is computed, and of the tokens only their number is read.
    Where layers are scanned this layer may be traced, and those that the tap is told are; without `start` they are
    scanned, and rematerialised, under a tap with `scan_tap`: one that keeps nothing of what it sees.
    `gather` makes a whole parameter out of this device's shard,
    layer by layer (fully sharded training). `execution`: None resolves that of JAX's default platform.
    """
    gather = gather or (lambda _name, value: value)
    execution = execution or resolve(config)
    dtype = jnp.dtype(config.compute_dtype)

    def load(name: str, value: jax.Array) -> jax.Array:
        return gather(name, value).astype(dtype)

    W_pos = load("W_pos", params["W_pos"]) if "W_pos" in params else None
    pos_TD = positions_TD(W_pos, tokens.shape[1], config)
    resid = embedded(params, tokens, pos_TD, config, gather)
    stacked = {name: params[name] for name in layer_names(config)}

    names_of: Mapping[int, frozenset[str]] = seen if isinstance(seen, Mapping) else {}
    every: Container[str] = frozenset[str]().union(*names_of.values()) if isinstance(seen, Mapping) else seen

    def block(
        resid: jax.Array, layer: Params, index: int = 0, told: TapFn | None = tap, names: Container[str] = every
    ) -> jax.Array:
        whole = {name: load(name, value) for name, value in layer.items()}
        return _block(resid, whole, pos_TD, config, execution, told, names, index)

    if start is not None:
        first, resid, *resid_pre = start
        layer = {name: load(name, value[first]) for name, value in stacked.items()}
        resid = _after_attention(resid, (resid_pre or [resid])[0], layer, config, execution, lambda _name, value: value)
        if execution.scan_layers:
            resid = jax.lax.fori_loop(first + 1, config.n_layers, partial(_one_of, block, stacked, tap), resid)
        else:
            for index in range(int(first) + 1, config.n_layers):
                resid = block(resid, {name: value[index] for name, value in stacked.items()}, index)
    elif scan_tap and execution.scan_layers:
        layer_at = partial(_one_of, block, stacked, tap)
        each_at = jax.checkpoint(layer_at) if execution.remat and execution.own_gradients else layer_at
        resid = jax.lax.fori_loop(0, config.n_layers, each_at, resid)
    elif tap is not None or not execution.scan_layers:
        for index in range(config.n_layers):
            names = names_of.get(index, ()) if isinstance(seen, Mapping) else seen
            at_index: BlockFn = partial(block, index=index, names=names)
            one = jax.checkpoint(at_index) if execution.remat and (tap is None or scan_tap) else at_index
            resid = one(resid, {name: value[index] for name, value in stacked.items()})
    else:  # of layers that are alike
        each = jax.checkpoint(block) if execution.remat else block
        resid, _ = jax.lax.scan(lambda x, layer: (each(x, layer), None), resid, stacked)
    return normalise(resid, params.get("ln_final_w"), config)


def _one_of(block: Any, stacked: Params, tap: TapFn | None, index: jax.Array, resid: jax.Array) -> jax.Array:
    """A layer of those that are alike, whose number is traced."""
    told = None if tap is None else lambda name, _index, value: tap(name, index, value)
    return block(resid, {name: value[index] for name, value in stacked.items()}, told=told)


@takes_tokens
def by_layer(
    params: Params, tokens: Int[Array, "B T"], config: ModelConfig, names: Container[str],
    fn: Callable[[dict[str, jax.Array], Params], Any],
) -> tuple[Float[Array, "B T D"], Any]:  # fmt: skip
    """The residual stream after the last layer; `fn(activations of these names, parameters)` of all layers, stacked.

    The activations of one layer are gone before the next layer's are there: with tens of layers, patterns of all would
    take gigabytes.
    """
    execution, dtype = resolve(config), jnp.dtype(config.compute_dtype)
    pos_TD = positions_TD(params.get("W_pos"), tokens.shape[1], config)
    resid = embedded(params, tokens, pos_TD, config)

    def one(resid: jax.Array, layer: Params, index: int = 0) -> tuple[jax.Array, Any]:
        layer = {name: value.astype(dtype) for name, value in layer.items()}
        seen: dict[str, jax.Array] = {}

        def keep(name: str, _index: int, value: jax.Array) -> jax.Array:
            seen[name] = value
            return value

        resid = _block(resid, layer, pos_TD, config, execution, keep, names, index)
        return resid, fn(seen, layer)

    stacked = {name: params[name] for name in layer_names(config)}
    if execution.scan_layers:
        return jax.lax.scan(one, resid, stacked)
    answers = []
    for index in range(config.n_layers):
        resid, answer = one(resid, {name: value[index] for name, value in stacked.items()}, index)
        # The next layer waits for what is made of this one's.
        resid, answer = jax.lax.optimization_barrier((resid, answer))
        answers.append(answer)
    return resid, jax.tree.map(lambda *found: jnp.stack(found), *answers)


def layer_fn(params: Params, n_ctx: int, config: ModelConfig) -> LayerFn:
    """The layers of a model one by one: `layer(resid_pre, index, tap=None, seen=ACTIVATIONS)` is its `resid_post`.

    For passes that begin in the middle. The index may be traced where layers are alike
    (`ModelConfig.layers_are_alike`); the tap is told it as it is given.
    """
    execution, dtype = resolve(config), jnp.dtype(config.compute_dtype)
    pos_TD = positions_TD(params.get("W_pos"), n_ctx, config)
    stacked = {name: params[name] for name in layer_names(config)}

    def layer(resid: jax.Array, index: Any, tap: TapFn | None = None, seen: Container[str] = ACTIVATIONS) -> jax.Array:
        weights = {name: value[index].astype(dtype) for name, value in stacked.items()}
        told = None if tap is None else lambda name, _index, value: tap(name, index, value)
        return _block(resid, weights, pos_TD, config, execution, told, seen, index if isinstance(index, int) else 0)

    return layer


def unembedding_DV(params: Params) -> jax.Array:
    """W_U, or the transposed embedding where it is tied."""
    return params["W_U"] if "W_U" in params else params["W_E"].T


def to_logits(
    x: Float[Array, "*B D"], W_U: Float[Array, "D V"], b_U: Float[Array, " V"] | None, config: ModelConfig
) -> Float[Array, "*B V"]:
    """Logits, float32, of what `final_resid` gives."""
    logits = einsum("...D,DV->...V", x, W_U.astype(x.dtype), preferred_element_type=jnp.float32)
    return soft_capped(with_bias(logits, b_U), config.logit_soft_cap)


def with_bias(x: Float[Array, "*B D"], bias: Float[Array, " D"] | None) -> Float[Array, "*B D"]:
    """x + bias, or x where there is none."""
    return x if bias is None else x + jnp.expand_dims(bias, range(x.ndim - 1))


def soft_capped(x: Float[Array, "*B"], cap: float) -> Float[Array, "*B"]:
    """c tanh(x / c), or x where the cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


@takes_tokens
def forward(
    params: Params,
    tokens: Int[Array, "B T"],
    config: ModelConfig,
    *,
    tap: TapFn | None = None,
    seen: Seen = ACTIVATIONS,
) -> Float[Array, "B T V"]:
    """Logits, float32, differentiable in either mode. Training never calls this: see `icl_jax.model.loss`."""
    x_BTD = final_resid(params, tokens, config, tap=tap, seen=seen)
    return to_logits(x_BTD, unembedding_DV(params), params.get("b_U"), config)


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
