"""Models whose weights are written by hand, so that every measurement of them has a known answer.

The residual stream has blocks ``tok | prev | out | pos``, the first three ``vocab_size`` wide, the last ``n_ctx``.
`induction_model` is the textbook pair of heads: layer 0 copies the token before into ``prev``, by position alone;
layer 1 looks for its own token in ``prev`` and copies what stands there to ``out``, which alone is unembedded. Where
nothing matches it rests on BOS, whose value is zero. `smeared_induction_model` does it in one layer, since a smeared
key holds the token before.

Known answers, BOS + 25 distinct tokens x 4, vocabulary 64: prefix matching 1.000 (layer 1) and 0.000 (layer 0),
previous-token score 1.000 (layer 0) and 0.010 (layer 1); loss ln 64 in the first copy and ln(1 + 63 exp(-12)) in
repeats; K-composition 1/sqrt(80), Q- and V-composition 0; ``W_Q W_K^T / sqrt(d_head)`` is the bilinear form with
gains `BETA` (match) and `BETA` / 2 (rest).
"""

import math

import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.maths.head_scores import repeated_tokens
from icl_jax.model.params import Params

BOS = 0
BETA = 30.0
GAMMA = 12.0


def repeated_rows(
    n_ctx: int = 101, *, vocab_size: int = 64, n_sequences: int = 10, repeat_len: int = 25, n_repeats: int = 4
) -> np.ndarray:
    """BOS + `repeat_len` distinct tokens x `n_repeats`, int32 [n_sequences, 1 + repeat_len * n_repeats]."""
    sizes = {"n_sequences": n_sequences, "repeat_len": repeat_len, "n_repeats": n_repeats}
    return repeated_tokens(np.arange(1, vocab_size), BOS, n_ctx, seed=5, **sizes)


def _config(n_layers: int, vocab_size: int, n_ctx: int, smeared_keys: bool) -> ModelConfig:
    return ModelConfig(
        n_layers=n_layers, d_model=3 * vocab_size + n_ctx, n_heads=1, n_ctx=n_ctx, vocab_size=vocab_size,
        positions="shortformer", position_embedding="learned", norm="none", smeared_keys=smeared_keys,
    )  # fmt: skip


def _blank(config: ModelConfig) -> dict[str, np.ndarray]:
    n, v, d = config.n_layers, config.vocab_size, config.d_model
    weights = {name: np.zeros((n, 1, d, d)) for name in ("W_Q", "W_K", "W_V", "W_O")}
    weights["W_E"] = np.eye(v, d)
    weights["W_U"] = np.eye(d, v, k=-2 * v)
    weights["W_pos"] = np.eye(config.n_ctx, d, k=3 * v)
    return weights


def _match(weights: dict[str, np.ndarray], layer: int, key_block: int, config: ModelConfig) -> None:
    """A head that attends where `key_block` holds its own token, else rests on BOS, and copies tok to out."""
    v, d = config.vocab_size, config.d_model
    # Scores are divided by sqrt(d_head), and d_head is d_model for a single head.
    gain, bos_dim = BETA * math.sqrt(d), v
    weights["W_Q"][layer, 0, :v, :v] = gain * np.eye(v)
    weights["W_K"][layer, 0, key_block * v : (key_block + 1) * v, :v] = np.eye(v)
    weights["W_Q"][layer, 0, :v, bos_dim] = gain / 2
    weights["W_K"][layer, 0, BOS, bos_dim] = 1
    weights["W_V"][layer, 0, :v, :v] = GAMMA * np.eye(v)
    weights["W_V"][layer, 0, BOS, BOS] = 0
    weights["W_O"][layer, 0, :v, 2 * v : 3 * v] = np.eye(v)


def _as_params(weights: dict[str, np.ndarray]) -> Params:
    return {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}


def induction_model(n_ctx: int = 101, vocab_size: int = 64) -> tuple[Params, ModelConfig]:
    """Two layers of one head: previous token, then induction."""
    config = _config(2, vocab_size, n_ctx, smeared_keys=False)
    v, d, pos = vocab_size, config.d_model, 3 * vocab_size
    weights = _blank(config)
    weights["W_Q"][0, 0, pos:, :n_ctx] = BETA * math.sqrt(d) * np.eye(n_ctx, k=-1)  # position q asks for q - 1
    weights["W_K"][0, 0, pos:, :n_ctx] = np.eye(n_ctx)
    weights["W_V"][0, 0, :v, :v] = np.eye(v)
    weights["W_O"][0, 0, :v, v : 2 * v] = np.eye(v)
    _match(weights, layer=1, key_block=1, config=config)
    return _as_params(weights), config


def smeared_induction_model(alpha: float, n_ctx: int = 101, vocab_size: int = 64) -> tuple[Params, ModelConfig]:
    """One layer of one head with smeared keys: sigmoid(alpha) of the own key, the rest of the one before.

    Prefix matching on BOS + 25 x 4: 0.307 for alpha = 0, 0.998 for -1, 1.000 for -3 and less, 0.000 for +20.
    """
    config = _config(1, vocab_size, n_ctx, smeared_keys=True)
    weights = _blank(config)
    _match(weights, layer=0, key_block=0, config=config)
    weights["smear_alpha"] = np.full((1, 1), alpha)
    return _as_params(weights), config
