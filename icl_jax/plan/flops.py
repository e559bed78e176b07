"""Arithmetic of a training step, counted from the model's sizes. A multiplication with its addition counts as two."""

import math

from icl_jax.config import Config
from icl_jax.model.execution import resolve
from icl_jax.model.params import declarations


def step_flops(config: Config) -> int:
    """Floating-point operations that a step asks for: matrix products, forward once and backward twice.

    Attention counts the keys that a query may see, on average (n_ctx + 1) / 2 without a window; look-ups, norms and the
    optimiser count nothing. The definition of model FLOPs in Chowdhery et al. 2022 (PaLM), appendix B, but with the
    causal mask.
    """
    return 3 * (_layers(config) + _unembedding(config))


def executed_flops(config: Config) -> int:
    """The same with what a TPU computes again: layers under remat, and scores in the backward pass of attention.

    Splash attention takes 2 products of the size of the scores forward and 7 backward, 3 more than needed.
    """
    again = _layers(config) if resolve(config.model, "tpu", config.train).remat else 0
    return step_flops(config) + again + 3 * _attention(config) // 2


def _attention(config: Config) -> int:
    """Scores and mixed values, forward."""
    model, n_seen = config.model, 0
    for layer in range(model.n_layers):
        window = min(model.window_of(layer) or model.n_ctx, model.n_ctx)
        n_seen += window * (window + 1) // 2 + (model.n_ctx - window) * window  # keys, by all queries of a row
    return config.train.batch_size * 4 * model.n_heads * model.head_width * n_seen


def _layers(config: Config) -> int:
    return _products(config, is_stacked=True) + _attention(config)


def _unembedding(config: Config) -> int:
    return _products(config, is_stacked=False)


def _products(config: Config, *, is_stacked: bool) -> int:
    """Tokens multiplied by the parameters, forward."""
    every = declarations(config.model).values()
    of_token = sum(2 * math.prod(one.shape) for one in every if one.multiplies and one.is_stacked == is_stacked)
    return config.tokens_per_step * of_token
