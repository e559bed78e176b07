"""AdamW from optax's parts; the learning rate and weight decay of a step are explicit so that they are recorded."""

import jax
import jax.numpy as jnp
import optax

from icl_jax.config import Config, OptimizerConfig
from icl_jax.model.params import Params


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
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def is_decayed(name: str) -> bool:
    """Weight decay leaves out norm weights (vectors) and smear alphas."""
    return not name.startswith("ln") and name != "smear_alpha"


def adam(config: OptimizerConfig, step: jax.Array) -> optax.GradientTransformation:
    """Adam's direction plus decoupled weight decay at `step`, still to be multiplied by minus the learning rate."""
    changed = jnp.logical_and(config.decay_change_step >= 0, step >= config.decay_change_step)
    weight_decay = jnp.where(changed, jnp.float32(config.decay_change_factor), jnp.float32(1)) * config.weight_decay
    chain = optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(weight_decay, mask=lambda params: {name: is_decayed(name) for name in params}),
    )

    def update(
        grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # optax raises the decays to an integer count, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)


def init_opt_state(config: OptimizerConfig, params: Params) -> optax.OptState:
    return adam(config, jnp.int32(0)).init(params)
