"""AdamW by optax, at values of the learning rate and weight decay that are explicit so that they are recorded."""

import jax
import jax.numpy as jnp
import optax

from icl_jax.config import Config
from icl_jax.model.params import Params, declarations


def learning_rate_fn(config: Config) -> optax.Schedule:
    """Step (0-based) to learning rate: linear warm-up that reaches the peak at its last step, then cosine or constant.

    The cosine begins at the peak and ends at its final fraction at the run's last step.
    """
    opt, n_steps = config.optimizer, config.train.n_steps
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


def adamw(config: Config, step: jax.Array, lr: jax.Array) -> optax.GradientTransformation:
    """AdamW as it is at `step`; what is decayed, the parameters' declarations say."""
    opt = config.optimizer
    changed = jnp.logical_and(opt.decay_change_step >= 0, step >= opt.decay_change_step)
    weight_decay = jnp.where(changed, jnp.float32(opt.decay_change_factor), jnp.float32(1)) * opt.weight_decay
    mask = {name: declared.decayed for name, declared in declarations(config.model).items()}
    chain = optax.adamw(lr, opt.b1, opt.b2, opt.eps, weight_decay=weight_decay, mask=mask)

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # optax raises the decays to an integer count, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)


def init_opt_state(config: Config, params: Params) -> optax.OptState:
    return adamw(config, jnp.int32(0), jnp.float32(0)).init(params)
