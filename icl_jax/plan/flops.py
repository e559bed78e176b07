"""Arithmetic of a training step, counted from the model's sizes. A multiplication with its addition counts as two."""

import math

from icl_jax.config import Config
from icl_jax.model.execution import resolve
from icl_jax.model.params import declarations


def step_flops(config: Config) -> int:
    """Floating-point operations that a step asks for: matrix products, forward once and backward twice.

    Attention counts the keys that a query may see, on average (n_ctx + 1) / 2; look-ups, norms and the optimiser count
    nothing. The definition of model FLOPs in Chowdhery et al. 2022 (PaLM), appendix B, but with the causal mask.
    """
    return 3 * config.tokens_per_step * (_layers(config) + _unembedding(config))


def executed_flops(config: Config) -> int:
    """The same with what a TPU computes again: layers under remat, and scores in the backward pass of attention.

    Splash attention takes 2 products of the size of the scores forward and 7 backward, 3 more than needed.
    """
    again = _layers(config) if resolve(config.model, "tpu", config.train).remat else 0
    again += 3 * _attention(config) // 2
    return step_flops(config) + config.tokens_per_step * again


def _attention(config: Config) -> int:
    """Scores and mixed values of one token, forward."""
    model = config.model
    return model.n_layers * 2 * model.d_model * (model.n_ctx + 1)


def _layers(config: Config) -> int:
    return _products(config, is_stacked=True) + _attention(config)


def _unembedding(config: Config) -> int:
    return _products(config, is_stacked=False)


def _products(config: Config, *, is_stacked: bool) -> int:
    """One token multiplied by the parameters, forward."""
    every = declarations(config.model).values()
    return sum(2 * math.prod(one.shape) for one in every if one.multiplies and one.is_stacked == is_stacked)
