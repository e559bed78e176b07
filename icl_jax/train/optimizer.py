"""Optimisers by optax, at values of the learning rate and weight decay that are explicit so that they are recorded."""

from collections.abc import Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from icl_jax.config import Config
from icl_jax.model.params import Declaration, Params, declarations

Own = Mapping[str, jax.Array]
"""Numbers of a config that are arguments of the program, by their fields' names."""
NONE: Own = {}


def numbers(config: Config, own: Own = NONE) -> Any:
    """The fields of [optimizer], with those that are arguments of the program in place of the config's."""
    section = config.optimizer
    names = (f.name for f in fields(section))
    return SimpleNamespace(**{name: own.get(f"optimizer.{name}", getattr(section, name)) for name in names})


def learning_rate_fn(config: Config, own: Own = NONE) -> optax.Schedule:
    """Step (0-based) to learning rate: linear warm-up that reaches the peak at its last step, then cosine or constant.

    The cosine begins at the peak and ends at its final fraction at the last step that it is laid out for.
    """
    opt, n_steps = numbers(config, own), config.optimizer.schedule_steps or config.train.n_steps
    if "optimizer.warmup_steps" in own:
        return lambda step: _learning_rate(opt, n_steps, jnp.asarray(step, jnp.float32))
    n_rest = max(n_steps - 1 - opt.warmup_steps, 1)
    if opt.schedule == "cosine":
        rest = optax.cosine_decay_schedule(opt.lr, n_rest, alpha=opt.final_lr_fraction)
    else:
        rest = optax.constant_schedule(opt.lr)
    schedule = rest
    if opt.warmup_steps > 0:
        warmup = optax.linear_schedule(opt.lr / opt.warmup_steps, opt.lr, max(opt.warmup_steps - 1, 1))
        schedule = optax.join_schedules([warmup, rest], [opt.warmup_steps])
    # optax multiplies the step by floats; float32 holds steps exactly up to 2**24.
    return lambda step: jnp.asarray(schedule(jnp.asarray(step, jnp.float32)), jnp.float32)


def _learning_rate(opt: Any, n_steps: int, step: jax.Array) -> jax.Array:
    """The same where the length of the warm-up is an argument, of which optax wants to know more."""
    warmup = jnp.asarray(opt.warmup_steps, jnp.float32)
    rising = opt.lr * (step + 1) / jnp.maximum(warmup, 1)
    rest = opt.lr
    if opt.schedule == "cosine":
        done = jnp.clip((step - warmup) / jnp.maximum(n_steps - 1 - warmup, 1), 0, 1)
        rest *= opt.final_lr_fraction + (1 - opt.final_lr_fraction) * (0.5 + 0.5 * jnp.cos(jnp.pi * done))
    return jnp.asarray(jnp.where(step < warmup, rising, rest), jnp.float32)


def clip_factor(config: Config, grad_norm: jax.Array, own: Own = NONE) -> jax.Array | None:
    """What the gradient is multiplied by so that its norm is not above `clip_norm`; None where nothing is clipped."""
    clip_norm = numbers(config, own).clip_norm
    factor = jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-30))
    if "optimizer.clip_norm" in own:
        return jnp.where(clip_norm > 0, factor, 1.0)
    return factor if clip_norm > 0 else None


def optimizer(config: Config, step: jax.Array, lr: jax.Array, own: Own = NONE) -> optax.GradientTransformation:
    """The config's optimiser as it is at `step`; what is decayed, the parameters' declarations say."""
    opt = numbers(config, own)
    changed = jnp.logical_and(opt.decay_change_step >= 0, step >= opt.decay_change_step)
    weight_decay = (
        jnp.where(changed, jnp.asarray(opt.decay_change_factor, jnp.float32), jnp.float32(1)) * opt.weight_decay
    )
    declared = declarations(config.model)
    mask = {name: one.decayed for name, one in declared.items()}
    chain: optax.GradientTransformation
    if opt.name == "adamw":
        chain = optax.adamw(lr, opt.b1, opt.b2, opt.eps, weight_decay=weight_decay, mask=mask)
    else:  # neither decays what a mask says, both would let the momentum have it
        moved = optax.sgd(lr, momentum=opt.b1) if opt.name == "sgd" else _muon(declared, lr, opt)
        chain = optax.chain(moved, optax.add_decayed_weights(-lr * weight_decay, mask))

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # optax raises the decays to an integer count, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)


# What Muon's steps are scaled to, so that they go with learning rates of Adam (Liu et al. 2025).
_RMS = 0.2


def _muon(declared: Mapping[str, Declaration], lr: jax.Array, opt: Any) -> optax.GradientTransformation:
    """Muon for what layers multiply by, all heads of a layer as one matrix; NAdam for the rest."""
    dims = {name: _as_matrix(one.axes) if one.is_stacked and one.multiplies else None for name, one in declared.items()}
    return muon(
        lr, beta=opt.b1, eps=opt.eps, adam_b1=opt.b1, adam_b2=opt.b2, consistent_rms=_RMS,
        muon_weight_dimension_numbers=dims,
    )  # fmt: skip


def _as_matrix(axes: str) -> MuonDimensionNumbers:
    """From the residual stream to all else, or back; each layer by itself."""
    letters = axes.split()
    stream = [letters.index("D")]
    others = [i for i, letter in enumerate(letters) if letter not in "ND"]
    return MuonDimensionNumbers(others, stream) if letters[-1] == "D" else MuonDimensionNumbers(stream, others)


def init_opt_state(config: Config, params: Params) -> optax.OptState:
    return optimizer(config, jnp.int32(0), jnp.float32(0)).init(params)
