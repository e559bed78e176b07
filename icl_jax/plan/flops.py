"""Arithmetic of a training step, counted from the model's sizes. A multiplication with its addition counts as two."""

from icl_jax.config import Config
from icl_jax.model.forward import is_rematerialised


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
    again = _layers(config) if is_rematerialised(config.model) else 0
    again += 3 * _attention(config) // 2
    return step_flops(config) + config.tokens_per_step * again


def _attention(config: Config) -> int:
    """Scores and mixed values of one token, forward."""
    model = config.model
    return model.n_layers * 2 * model.d_model * (model.n_ctx + 1)


def _layers(config: Config) -> int:
    model = config.model
    products = 2 * (4 * model.d_model**2 + 2 * model.d_model * model.d_mlp)
    return model.n_layers * products + _attention(config)


def _unembedding(config: Config) -> int:
    return 2 * config.model.d_model * config.model.vocab_size
