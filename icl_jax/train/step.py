"""One optimiser step as one device runs it; `icl_jax.train.parallel` maps it over devices."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from icl_jax.config import Config
from icl_jax.interventions.tap import Intervened
from icl_jax.model.execution import Execution
from icl_jax.model.forward import GatherFn, final_resid, unembedding_DV
from icl_jax.model.loss import mean_loss, token_loss
from icl_jax.model.params import Params, init_params, layer_names
from icl_jax.train.optimizer import NONE, Own, clip_factor, init_opt_state, learning_rate_fn, optimizer


class TrainState(NamedTuple):
    """Everything that the next step depends on, besides its rows."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """What a step records; the loss is that of the parameters before the update."""

    loss_T: jax.Array  # nats, mean over the global batch at each position
    grad_norm: jax.Array  # before clipping
    lr: jax.Array


class Axes(NamedTuple):
    """Mapped axes that the step reduces over, and the parameters that are sharded along the last of them."""

    names: tuple[str, ...]
    sharded: dict[str, int]  # parameter -> array axis that is cut over `names[-1]`


def init_state(config: Config, seed: int | jax.Array | None = None) -> TrainState:
    """The state of step 0; `seed`: in place of the config's."""
    params = init_params(config.model, config.train.seed if seed is None else seed)
    return TrainState(jnp.int32(0), params, init_opt_state(config, params))


def _gather_fn(axes: Axes, stacked: tuple[str, ...]) -> GatherFn:
    def gather(name: str, value: jax.Array) -> jax.Array:
        if name not in axes.sharded:
            return value
        # A stacked parameter arrives as one layer's slice: its axes have moved down by one.
        axis = axes.sharded[name] - (1 if name in stacked else 0)
        return jax.lax.all_gather(value, axes.names[-1], axis=axis, tiled=True)

    return gather


def loss_and_grads(
    params: Params, rows: Int[Array, "B T1"], config: Config, axes: Axes, execution: Execution,
    intervened: Intervened | None = None,
) -> tuple[Float[Array, " T"], Params]:  # fmt: skip
    """Loss at each position and the gradient of its mean, over this device's rows in micro-batches."""
    gather = _gather_fn(axes, layer_names(config.model))

    def loss_fn(params: Params, rows: jax.Array, numbers: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        taps: dict[str, Any] = {}
        if intervened is not None:
            params = intervened.params(params)
            taps = {"tap": intervened.tap(params, rows[:, :-1], numbers), "seen": intervened.seen, "scan_tap": True}
        x_BTD = final_resid(params, rows[:, :-1], config.model, gather=gather, execution=execution, **taps)
        name = "W_U" if "W_U" in params else "W_E"
        whole = {name: gather(name, params[name])}
        W_U = unembedding_DV(whole).astype(x_BTD.dtype)
        cap = config.model.logit_soft_cap
        more = (execution.loss_chunk, params.get("b_U"), cap)
        if not (first := config.train.loss_from):
            return mean_loss(x_BTD, W_U, rows[:, 1:], *more)
        before_BT = token_loss(x_BTD[:, :first], W_U, rows[:, 1 : first + 1], *more)  # recorded, of no gradient
        mean, loss_T = mean_loss(x_BTD[:, first:], W_U, rows[:, first + 1 :], *more)
        return mean, jnp.concatenate([jnp.mean(before_BT, axis=0), loss_T])

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    n_micro = execution.n_micro_batches
    parts: tuple[jax.Array, ...] = (rows,)
    if intervened is not None:
        n_micro = 1 if intervened.reads_whole_batch else n_micro
        # Rows are told their numbers in the step, which do not depend on devices and micro-batches.
        first = jax.lax.axis_index(axes.names) * rows.shape[0] if axes.names else 0
        parts = rows, first + jnp.arange(rows.shape[0])
    if n_micro == 1:
        (_, loss_T), grads = grad_fn(params, *parts)
        return loss_T, grads

    def micro_step(total: Any, some: tuple[jax.Array, ...]) -> tuple[Any, None]:
        (_, loss_T), grads = grad_fn(params, *some)
        return jax.tree.map(jnp.add, total, (loss_T, grads)), None

    zero = (jnp.zeros(rows.shape[1] - 1, jnp.float32), jax.tree.map(jnp.zeros_like, params))
    total, _ = jax.lax.scan(micro_step, zero, tuple(part.reshape(n_micro, -1, *part.shape[1:]) for part in parts))
    answer: tuple[jax.Array, Params] = jax.tree.map(lambda x: x / n_micro, total)
    return answer


def _where_not(masks: Mapping[str, list[jax.Array]], new: Any, old: Any) -> Any:
    """A tree that has dicts of parameters in it, with what it was where they are frozen."""

    def one(path: tuple[Any, ...], new: jax.Array, old: jax.Array) -> jax.Array:
        for mask in masks.get(getattr(path[-1], "key", ""), ()):
            new = jnp.where(mask, old, new)
        return new

    return jax.tree_util.tree_map_with_path(one, new, old)


def train_step(
    state: TrainState, rows: Int[Array, "B T1"], *, config: Config, axes: Axes, execution: Execution, own: Own = NONE,
    intervened: Intervened | None = None,
) -> tuple[TrainState, StepMetrics]:  # fmt: skip
    """One step on this device's share of the batch: every device returns the same metrics.

    Row entries 0..T-1 are inputs, 1..T targets. Gradients and the per-position loss are means over all devices. `own`:
    numbers in place of the config's. `intervened`: the interventions that are on. The norm of the gradient is without
    what is frozen.
    """
    loss_T, grads = loss_and_grads(state.params, rows, config, axes, execution, intervened)
    n_devices = jax.lax.psum(1, axes.names)
    # all_gather's transpose has already summed the gradients of sharded parameters over their own axis.
    whole = {name: grad for name, grad in grads.items() if name not in axes.sharded}
    loss_T, whole = jax.lax.psum((loss_T, whole), axes.names)
    shards = {name: grads[name] for name in axes.sharded}
    if shards:
        shards = jax.lax.psum(shards, axes.names[:-1])
    loss_T, grads = jax.tree.map(lambda x: x / n_devices, (loss_T, {name: (whole | shards)[name] for name in grads}))

    frozen = {} if intervened is None else intervened.frozen()
    if frozen:
        grads = _where_not(frozen, grads, jax.tree.map(jnp.zeros_like, grads))

    square = optax.tree.norm({name: grads[name] for name in whole}, squared=True)
    if shards:
        square = square + jax.lax.psum(
            optax.tree.norm({name: grads[name] for name in shards}, squared=True), axes.names[-1]
        )
    grad_norm = jnp.sqrt(square)
    if (scale := clip_factor(config, grad_norm, own)) is not None:
        grads = jax.tree.map(lambda grad: grad * scale, grads)

    lr = learning_rate_fn(config, own)(state.step)
    updates, opt_state = optimizer(config, state.step, lr, own).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if frozen:
        params, opt_state = _where_not(frozen, (params, opt_state), (state.params, state.opt_state))
    return TrainState(state.step + 1, params, opt_state), StepMetrics(loss_T, grad_norm, lr)
