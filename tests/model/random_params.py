"""Parameters with structure in every entry: norms away from 1, alphas away from 0, activations of order 1."""

import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.model.params import Params, param_shapes


def random_params(config: ModelConfig, seed: int = 0) -> Params:
    rng = np.random.default_rng(seed)
    params = {}
    for name, shape in param_shapes(config).items():
        if name.startswith("ln") or name.endswith("norm_w"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.startswith("smear") or name.startswith("b_"):
            value = rng.normal(0, 1, shape)
        else:
            # Small enough that rounding does not grow from layer to layer where nothing is normalised.
            std = 1.0 if name in ("W_E", "W_pos") else 0.6 / np.sqrt(shape[-2])
            value = rng.normal(0, std, shape)
        params[name] = jnp.asarray(value, jnp.float32)
    return params


def random_tokens(config: ModelConfig, n_rows: int, n_ctx: int, seed: int = 1) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).integers(0, config.vocab_size, (n_rows, n_ctx)), jnp.int32)
