"""What each head is worth: the loss of every token when the head is taken away, in four ways.

For head h of layer l, with z its mixed values and z W_O its result:

=====================  ==============================================================================
full                   result set to zero, everything after it computed anew
pattern_preserving     result set to zero, attention patterns as in the intact run: what is lost is
                       its effect through later values and on logits, not on where later heads look
mean                   as full, with the mean over rows at the same position in place of zero
resample               as full, with the result of another row in place of zero: of the row before, among
                       those that are computed together (about 2,000 tokens); of their last for the first
=====================  ==============================================================================

In the last layer nothing looks through a later pattern, so both zero ablations agree there. The final norm is computed
anew in all of them, which can hide part of a head's effect (the paper notes this too).

Losses are in nats, [0, inf). An induction head raises them in either zero ablation; the previous-token head that feeds
it in full ablation only: its part goes through keys, which pattern_preserving leaves alone. Hand-built model:
+4.1585 on repeats for all of these, 0.0000 for the previous-token head with patterns preserved.

Source: Olsson et al. 2022, appendix "Data collection (2)" (zero ablations). Mean ablation: Wang et al. 2022 (IOI);
resampling: Chan et al. 2022 (causal scrubbing). Departures: rows of the run in place of 10,000 examples.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import as_jax
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.measurement import Context, Measurement, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.execution import resolve
from icl_jax.model.forward import by_layer, written
from icl_jax.model.loss import loss_of_resid, losses
from icl_jax.model.params import Params, declarations, layer_names
from icl_jax.model.tokens import takes_rows

KINDS = ("full", "pattern_preserving", "mean", "resample")

# Tokens at a time: heads' queries, keys and values of so many rows are held, of all layers.
_TOKENS_AT_A_TIME = 2048


class _Intact(NamedTuple):
    """What the intact model computed on some rows, of every layer: lists, or stacked where layers are scanned."""

    loss_BT: jax.Array
    resid_pre: Any
    resid_mid: Any
    q: Any
    k: Any
    z: Any


_KEPT = ("resid_pre", "resid_mid", "q", "k", "z")


def _loss(params: Params, rows: jax.Array, config: ModelConfig, **options: Any) -> jax.Array:
    return losses(params, rows, config, **options)


def _intact(params: Params, rows: jax.Array, config: ModelConfig) -> _Intact:
    if resolve(config).scan_layers:
        resid, kept = by_layer(
            params, rows[:, :-1], config, _KEPT, lambda seen, _layer: {name: seen[name] for name in _KEPT}
        )
        return _Intact(loss_of_resid(params, resid, rows, config), **kept)
    seen: dict[str, list[jax.Array]] = {name: [] for name in _KEPT}

    def see(name: str, _layer: int, value: jax.Array) -> jax.Array:
        seen[name].append(value)
        return value

    return _Intact(_loss(params, rows, config, tap=see, seen=_KEPT), **seen)


def _mean_z(params: Params, rows_IBT: jax.Array, config: ModelConfig, n_rows: int) -> Any:
    """Mean over the first `n_rows` rows of each head's values at each position, [H, T, E] of each layer."""
    is_counted_IB = (np.arange(rows_IBT.shape[0] * rows_IBT.shape[1]) < n_rows).reshape(rows_IBT.shape[:2])

    def summed(args: tuple[jax.Array, jax.Array]) -> Any:
        rows, is_counted_B = args
        weight_B = is_counted_B.astype(jnp.dtype(config.compute_dtype))
        return jax.tree.map(lambda z: jnp.einsum("...BHTE,B->...HTE", z, weight_B), _intact(params, rows, config).z)

    def add(total: Any, args: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, summed(args)), None

    whole = rows_IBT, jnp.asarray(is_counted_IB)
    zero = jax.tree.map(lambda of: jnp.zeros(of.shape, of.dtype), jax.eval_shape(summed, (whole[0][0], whole[1][0])))
    total, _ = jax.lax.scan(add, zero, whole)
    return jax.tree.map(lambda value: value / np.float32(n_rows).astype(value.dtype), total)


def _heads_of_layer(
    params: Params, rows: jax.Array, config: ModelConfig, kinds: tuple[str, ...], intact: _Intact, mean: Any, layer: Any
) -> dict[str, Float[Array, "H B T"]]:
    """Loss without each head of a layer. Computed anew is what lies after the layer's attention, all kinds at once."""

    def keep_pattern(name: str, index: Any, _value: jax.Array) -> jax.Array:
        return (intact.q if name == "q" else intact.k)[index]

    z = intact.z[layer]
    weights: Params = {
        name: params[name][layer].astype(z.dtype) for name in ("W_O", "b_O", "ln1_post_w") if name in params
    }
    is_pre = config.norm_position == "pre"
    all_heads_BTD = None if is_pre else jnp.einsum("BHTE,HED->BTD", z, weights["W_O"])

    def one_head(args: tuple[jax.Array, ...]) -> dict[str, jax.Array]:
        z_BTE, mean_TE, W_O_ED = args

        def resid_mid(new_z_BTE: jax.Array) -> jax.Array:
            change_BTD = jnp.einsum("BTE,ED->BTD", new_z_BTE - z_BTE, W_O_ED)
            if all_heads_BTD is None:
                return intact.resid_mid[layer] + change_BTD
            attn_out_BTD = written(all_heads_BTD + change_BTD, weights, "b_O", "ln1_post_w", config)
            return intact.resid_pre[layer] + attn_out_BTD

        def started(resid_mid: jax.Array) -> Any:
            if config.parallel_residual == "none":
                return layer, resid_mid
            n_times = len(resid_mid) // len(rows)
            return layer, resid_mid, jnp.tile(intact.resid_pre[layer], (n_times, 1, 1))

        put = {
            "full": lambda: jnp.zeros_like(z_BTE),
            "mean": lambda: jnp.broadcast_to(mean_TE[None], z_BTE.shape),
            "resample": lambda: jnp.roll(z_BTE, 1, axis=0),
        }
        found: dict[str, jax.Array] = {}
        anew = [kind for kind in kinds if kind in put]
        if anew:
            start = started(jnp.concatenate([resid_mid(put[kind]()) for kind in anew]))
            loss = _loss(params, jnp.tile(rows, (len(anew), 1)), config, start=start)
            found = dict(zip(anew, jnp.split(loss, len(anew)), strict=True))
        if "pattern_preserving" in kinds:
            if isinstance(layer, int) and layer == config.n_layers - 1 and "full" in found:
                found["pattern_preserving"] = found["full"]
            else:
                start = started(resid_mid(put["full"]()))
                found["pattern_preserving"] = _loss(
                    params, rows, config, start=start, tap=keep_pattern, seen=("q", "k")
                )
        return found

    mean_HTE = jnp.zeros((z.shape[1], *z.shape[2:]), z.dtype) if mean is None else mean[layer]
    return jax.lax.map(one_head, (jnp.swapaxes(z, 0, 1), mean_HTE, weights["W_O"]))


@takes_rows
def ablate(
    params: Params | dict[str, np.ndarray], rows: Int[Array, "B tokens"] | np.ndarray, config: ModelConfig,
    kinds: tuple[str, ...] = KINDS, *, layers: Sequence[int] | None = None,
) -> dict[str, Float[Array, "..."]]:  # fmt: skip
    """Loss of every token, nats: "intact" [row, position], and for each of `kinds` [layer, head, row, position].

    `layers`: those whose heads are ablated, in this order; None: all.

    What lies before a head is computed once for all. resample puts one row's values in another's place, so it is NaN
    for a single row. Raises ValueError for a kind that is none of `KINDS`.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds has {', '.join(unknown)}: must be of {', '.join(KINDS)}")
    chosen = list(range(config.n_layers) if layers is None else layers)
    if not chosen or not all(0 <= layer < config.n_layers for layer in chosen):
        raise ValueError(f"{layers=} must be layers from 0 to {config.n_layers - 1}")
    params = as_jax(params)
    n_rows, n_ctx = rows.shape[0], rows.shape[1] - 1
    n_each = max(2, min(n_rows, _TOKENS_AT_A_TIME // n_ctx))
    # Filled up with the first rows again; what they give is cut off at the end.
    order = np.arange(n_rows + -n_rows % n_each) % n_rows
    rows_IBT = jnp.asarray(rows)[order].reshape(-1, n_each, n_ctx + 1)
    mean = _mean_z(params, rows_IBT, config, n_rows) if "mean" in kinds else None

    def some_rows(rows: jax.Array) -> dict[str, jax.Array]:
        intact = _intact(params, rows, config)
        of_layer = partial(_heads_of_layer, params, rows, config, kinds, intact, mean)
        if resolve(config).scan_layers:
            return {"intact": intact.loss_BT, **jax.lax.map(of_layer, jnp.asarray(chosen))}
        found = [of_layer(layer) for layer in chosen]
        return {"intact": intact.loss_BT} | {kind: jnp.stack([loss[kind] for loss in found]) for kind in kinds}

    chunks = jax.lax.map(some_rows, rows_IBT)
    whole = {"intact": chunks["intact"].reshape(-1, n_ctx)[:n_rows]}
    for kind in kinds:
        # I N H B T: rows of a chunk next to their chunk.
        NHIBT = jnp.moveaxis(chunks[kind], 0, 2)
        whole[kind] = NHIBT.reshape(*NHIBT.shape[:2], -1, n_ctx)[:, :, :n_rows]
    if n_rows < 2 and "resample" in whole:
        whole["resample"] = jnp.full_like(whole["resample"], jnp.nan)
    return whole


def without_heads(params: Params, heads: Bool[Array, "N H"]) -> Params:
    """The model with these heads' results set to zero, everything after them anew: it has no W_O of theirs."""
    W_O = params["W_O"]
    return params | {"W_O": jnp.where(heads[:, :, None, None], jnp.zeros_like(W_O), W_O)}


@takes_rows
def ablate_sets(
    params: Params | dict[str, np.ndarray], rows: Int[Array, "B tokens"] | np.ndarray, config: ModelConfig,
    sets: Bool[Array, "K N H"] | np.ndarray, kind: str = "full",
) -> Float[Array, "K B T"]:  # fmt: skip
    """Loss of every token, nats, with all heads of a set taken away at once: "full" or "pattern_preserving"."""
    if kind not in ("full", "pattern_preserving"):
        raise ValueError(f"{kind=} must be 'full' or 'pattern_preserving'")
    whole = as_jax(params)

    def some_rows(rows: jax.Array) -> jax.Array:
        options: dict[str, Any] = {}
        if kind == "pattern_preserving":
            kept = {"q": (intact := _intact(whole, rows, config)).q, "k": intact.k}
            options = {"tap": lambda name, layer, _value: kept[name][layer], "seen": ("q", "k"), "scan_tap": True}
        loss_KBT: jax.Array = jax.lax.map(
            lambda heads: losses(without_heads(whole, heads), rows, config, **options), jnp.asarray(sets)
        )
        return jnp.moveaxis(loss_KBT, 0, 1)

    n_each = max(1, _TOKENS_AT_A_TIME // (rows.shape[1] - 1))
    return jnp.moveaxis(map_rows(some_rows, rows, n_at_a_time=n_each), 0, 1)


def matched_sets(chosen: Bool[Array, "N H"], order: Float[Array, "A N H"]) -> Bool[Array, "A N H"]:
    """As many other heads of each layer as are chosen there, the first by `order`; all others where those are fewer."""
    order = jnp.where(chosen[None], jnp.inf, order)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
    return (rank < jnp.sum(chosen, axis=-1)[None, :, None]) & ~chosen[None]


def look(at: Snapshot, rows: jax.Array, row: jax.Array, position: jax.Array) -> dict[str, jax.Array]:
    loss = ablate(at.params, rows, at.config)
    means = {f"{kind}_loss": jnp.mean(values, axis=-2) for kind, values in loss.items()}
    return means | {f"{kind}_token_loss": values[..., row, position] for kind, values in loss.items()}


def _reads(context: Context) -> tuple[np.ndarray, ...]:
    row, position = (index[: context.n_ablation_tokens] for index in context.sampled)
    return context.held_out[: context.n_ablation_rows], row, position


def _work(context: Context) -> float:
    """Of each head and kind, the half of the layers that lies after it, and the unembedding."""
    model = context.config.model
    sizes = {name: math.prod(d.shape) * d.multiplies for name, d in declarations(model).items()}
    layers = sum(sizes[name] for name in layer_names(model))
    n_passes = len(KINDS) * model.n_layers * model.n_heads
    return 2.0 * context.n_ablation_rows * model.n_ctx * n_passes * (layers / 2 + sum(sizes.values()) - layers)


def _variables() -> dict[str, Variable]:
    variables = {
        "intact_loss": Variable(
            ("position",), "nats", "mean loss over the ablations' rows of the intact model; 0 or more"
        ),
        "intact_token_loss": Variable(("ablated_token",), "nats", "its loss of single tokens; 0 or more"),
    }
    for kind in KINDS:
        text = f"with the head's result taken away ({kind.replace('_', '-')} ablation); 0 or more"
        heads = ("layer", "head")
        missing = "there is a single row to draw from" if kind == "resample" else ""
        whole = Variable((*heads, "position"), "nats", f"mean loss over rows {text}", missing)
        variables[f"{kind}_loss"] = whole
        single = Variable((*heads, "ablated_token"), "nats", f"loss of single tokens {text}", missing)
        variables[f"{kind}_token_loss"] = single
    return variables


MEASUREMENT = Measurement(
    name="ablation",
    source="Olsson et al. 2022, appendix Data collection (2); Wang et al. 2022 (mean); Chan et al. 2022 (resample)",
    variables=_variables(),
    look=look,
    reads=_reads,
    why_not=needs_layers,
    on_few=True,
    work=_work,
)
