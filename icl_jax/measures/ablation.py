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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import as_jax
from icl_jax.measures.measurement import Context, Measurement, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.forward import written
from icl_jax.model.loss import losses
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_rows

KINDS = ("full", "pattern_preserving", "mean", "resample")

# Tokens at a time: patterns and heads' values of so many rows are held.
_TOKENS_AT_A_TIME = 2048


class _Intact(NamedTuple):
    """What the intact model computed on some rows, per layer where it is a list."""

    loss_BT: jax.Array
    resid_pre: list[jax.Array]
    resid_mid: list[jax.Array]
    z: list[jax.Array]
    pattern: list[jax.Array]


def _loss(params: Params, rows: jax.Array, config: ModelConfig, **options: Any) -> jax.Array:
    return losses(params, rows, config, **options)


def _intact(params: Params, rows: jax.Array, config: ModelConfig, names: tuple[str, ...]) -> _Intact:
    seen: dict[str, list[jax.Array]] = {"resid_pre": [], "resid_mid": [], "z": [], "pattern": []}

    def see(name: str, _layer: int, value: jax.Array) -> jax.Array:
        seen[name].append(value)
        return value

    return _Intact(_loss(params, rows, config, tap=see, seen=names), **seen)


def _mean_z(params: Params, rows_IBT: jax.Array, config: ModelConfig, n_rows: int) -> list[jax.Array]:
    """Mean over the first `n_rows` rows of each head's values at each position, [H, T, E] for each layer."""
    is_counted_IB = (np.arange(rows_IBT.shape[0] * rows_IBT.shape[1]) < n_rows).reshape(rows_IBT.shape[:2])

    def add(total: list[jax.Array], args: tuple[jax.Array, jax.Array]) -> tuple[list[jax.Array], None]:
        rows, is_counted_B = args
        z = _intact(params, rows, config, ("z",)).z
        weight_BHTE = is_counted_B[:, None, None, None].astype(z[0].dtype)
        return [a + jnp.sum(b * weight_BHTE, axis=0) for a, b in zip(total, z, strict=True)], None

    n_ctx = rows_IBT.shape[2] - 1
    zero = jnp.zeros((config.n_heads, n_ctx, config.head_width), jnp.dtype(config.compute_dtype))
    total, _ = jax.lax.scan(add, [zero] * config.n_layers, (rows_IBT, jnp.asarray(is_counted_IB)))
    return [value / np.float32(n_rows).astype(value.dtype) for value in total]


def _heads_of_layer(
    params: Params, rows: jax.Array, config: ModelConfig, intact: _Intact, mean_HTE: jax.Array, layer: int
) -> dict[str, Float[Array, "H B T"]]:
    """Loss without each head of a layer. Computed anew is what lies after the layer's attention, all kinds at once."""
    is_last = layer == config.n_layers - 1

    def keep_pattern(_name: str, index: int, _value: jax.Array) -> jax.Array:
        return intact.pattern[index]

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

        zero = resid_mid(jnp.zeros_like(z_BTE))
        others = [resid_mid(jnp.broadcast_to(mean_TE[None], z_BTE.shape)), resid_mid(jnp.roll(z_BTE, 1, axis=0))]
        start = started(jnp.concatenate([zero, *others]))
        full, mean, resample = jnp.split(_loss(params, jnp.tile(rows, (3, 1)), config, start=start), 3)
        kept = full
        if not is_last:
            kept = _loss(params, rows, config, start=started(zero), tap=keep_pattern, seen=("pattern",))
        return {"full": full, "pattern_preserving": kept, "mean": mean, "resample": resample}

    return jax.lax.map(one_head, (jnp.swapaxes(z, 0, 1), mean_HTE, weights["W_O"]))


@takes_rows
def ablate(
    params: Params | dict[str, np.ndarray], rows: Int[Array, "B tokens"] | np.ndarray, config: ModelConfig
) -> dict[str, Float[Array, "..."]]:
    """Loss of every token, nats: "intact" [row, position], and for each of `KINDS` [layer, head, row, position].

    resample puts one row's values in another's place, so it is NaN for a single row.
    """
    params = as_jax(params)
    n_rows, n_ctx = rows.shape[0], rows.shape[1] - 1
    n_each = max(2, min(n_rows, _TOKENS_AT_A_TIME // n_ctx))
    # Filled up with the first rows again; what they give is cut off at the end.
    order = np.arange(n_rows + -n_rows % n_each) % n_rows
    rows_IBT = jnp.asarray(rows)[order].reshape(-1, n_each, n_ctx + 1)
    mean = _mean_z(params, rows_IBT, config, n_rows)

    def some_rows(rows: jax.Array) -> dict[str, jax.Array]:
        intact = _intact(params, rows, config, ("resid_pre", "resid_mid", "z", "pattern"))
        layers = [_heads_of_layer(params, rows, config, intact, mean[i], i) for i in range(config.n_layers)]
        return {"intact": intact.loss_BT} | {kind: jnp.stack([loss[kind] for loss in layers]) for kind in KINDS}

    chunks = jax.lax.map(some_rows, rows_IBT)
    whole = {"intact": chunks["intact"].reshape(-1, n_ctx)[:n_rows]}
    for kind in KINDS:
        # I N H B T: rows of a chunk next to their chunk.
        NHIBT = jnp.moveaxis(chunks[kind], 0, 2)
        whole[kind] = NHIBT.reshape(*NHIBT.shape[:2], -1, n_ctx)[:, :, :n_rows]
    if n_rows < 2:
        whole["resample"] = jnp.full_like(whole["resample"], jnp.nan)
    return whole


def look(at: Snapshot, rows: jax.Array, row: jax.Array, position: jax.Array) -> dict[str, jax.Array]:
    loss = ablate(at.params, rows, at.config)
    means = {f"{kind}_loss": jnp.mean(values, axis=-2) for kind, values in loss.items()}
    return means | {f"{kind}_token_loss": values[..., row, position] for kind, values in loss.items()}


def _reads(context: Context) -> tuple[np.ndarray, ...]:
    row, position = (index[: context.n_ablation_tokens] for index in context.sampled)
    return context.held_out[: context.n_ablation_rows], row, position


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
)
