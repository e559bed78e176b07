"""AdamW from optax's parts, with the learning rate and weight decay of a step made explicit so that they are recorded."""

import jax
import jax.numpy as jnp
import optax

from icl_jax.config import Config, OptimizerConfig
from icl_jax.model.params import Params


def learning_rate_fn(config: Config) -> optax.Schedule:
    """Step (0-based) to learning rate: linear warm-up that reaches the peak at its last step, then cosine or constant."""
    opt, n_steps = config.optimizer, config.train.n_steps
    n_rest = max(n_steps - opt.warmup_steps, 1)
    if opt.schedule == "cosine":
        rest = optax.cosine_decay_schedule(opt.lr, n_rest, alpha=opt.final_lr_fraction)
    else:
        rest = optax.constant_schedule(opt.lr)
    if opt.warmup_steps == 0:
        return rest
    warmup = optax.linear_schedule(opt.lr / opt.warmup_steps, opt.lr, max(opt.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, rest], [opt.warmup_steps])


def is_decayed(name: str) -> bool:
    """Weight decay leaves out norm weights (vectors) and smear alphas."""
    return not name.startswith("ln") and name != "smear_alpha"


def adam(config: OptimizerConfig, step: jax.Array) -> optax.GradientTransformation:
    """Adam's direction plus decoupled weight decay at `step`, still to be multiplied by minus the learning rate."""
    changed = jnp.logical_and(config.decay_change_step >= 0, step >= config.decay_change_step)
    weight_decay = jnp.where(changed, jnp.float32(config.decay_change_factor), jnp.float32(1)) * config.weight_decay
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(weight_decay, mask=lambda params: {name: is_decayed(name) for name in params}),
    )


def init_opt_state(config: OptimizerConfig, params: Params) -> optax.OptState:
    return adam(config, jnp.int32(0)).init(params)
