"""Direct logit attribution against sums in plain NumPy, and on models whose answer is known."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.analysis import direct_logit_attribution
from icl_jax.config import ModelConfig
from icl_jax.maths.logit_attribution import LogitAttribution
from icl_jax.model.forward import run_with_cache
from tests.hand_built import GAMMA, induction_model, repeated_rows
from tests.model.random_params import random_params, random_tokens

V, T = 19, 11


def _config(**changes: Any) -> ModelConfig:
    fields = {"n_layers": 2, "d_model": 30, "n_heads": 5, "n_ctx": T, "vocab_size": V, "position_embedding": "learned"}
    return ModelConfig(**(fields | changes))


CONFIGS = [
    _config(norm="none"),
    _config(norm="layernorm", positions="standard", d_mlp=13),
    _config(norm="rmsnorm", n_layers=3, positions="rotary", tied_unembedding=True),
    _config(norm="rmsnorm", n_layers=1, smeared_keys=True, d_mlp=13),
    _config(norm="layernorm", n_layers=0, positions="standard"),
]


@functools.partial(jax.jit, static_argnums=1)
def attribution(params: dict, config: ModelConfig, tokens: jax.Array) -> LogitAttribution:
    return direct_logit_attribution(params, tokens, config)


@functools.partial(jax.jit, static_argnums=2)
def run(params: dict, tokens: jax.Array, config: ModelConfig) -> tuple:
    """Logits and activations under ``name layer``: the keys of a jitted function's dict must be of one type."""
    logits, cache = run_with_cache(params, tokens, config)
    return logits, {f"{name} {layer}": value for (name, layer), value in cache.items()}


def by_hand(params: dict, config: ModelConfig, tokens: np.ndarray, part: np.ndarray, last: np.ndarray) -> np.ndarray:
    """What `part` of the `last` residual stream (both [position, D], one row) adds to the true token's logit."""
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    W_U = weights["W_U"] if "W_U" in weights else weights["W_E"].T
    out = np.empty(len(tokens) - 1)
    for t in range(len(out)):
        x, whole = part[t].astype(np.float64), last[t].astype(np.float64)
        if config.norm == "layernorm":
            x, whole = x - x.mean(), whole - whole.mean()
        if config.norm != "none":
            x = x / np.sqrt(np.mean(whole**2) + config.norm_eps) * weights["ln_final_w"]
        logits = x @ W_U
        out[t] = logits[tokens[t + 1]] - logits.mean()
    return out


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.n_layers}-{c.norm}-{c.positions}-{c.d_mlp}")
def test_terms_by_hand_and_their_sum(config: ModelConfig) -> None:
    params, tokens = random_params(config), random_tokens(config, 3, T)
    found = attribution(params, config, tokens)
    logits, cache = jax.tree.map(np.asarray, run(params, tokens, config))
    logits = logits[:, :-1]
    targets = np.asarray(tokens)[:, 1:, None]
    centred = np.take_along_axis(logits, targets, -1)[..., 0] - logits.mean(-1)
    np.testing.assert_allclose(found.logit, centred, atol=1e-5)
    whole = np.asarray(found.embedding) + np.sum(found.heads, axis=(2, 3)) + np.sum(found.mlps, axis=2)
    np.testing.assert_allclose(whole, centred, atol=1e-4)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.loss_nats, -np.log(np.take_along_axis(p, targets, -1)[..., 0]), atol=1e-5)

    assert found.heads.shape == (3, T - 1, config.n_layers, 5)
    assert found.mlps.shape == (3, T - 1, config.n_layers)
    if not config.n_layers:
        return
    last = cache[f"resid_post {config.n_layers - 1}"]
    row = 2
    one = np.asarray(tokens)[row]
    expected = by_hand(params, config, one, cache["resid_pre 0"][row], last[row])
    np.testing.assert_allclose(found.embedding[row], expected, atol=1e-4)
    for layer, head in itertools.product(range(config.n_layers), range(5)):
        expected = by_hand(params, config, one, cache[f"result {layer}"][row][:, head], last[row])
        np.testing.assert_allclose(found.heads[row, :, layer, head], expected, atol=1e-4)
    for layer in range(config.n_layers):
        expected = by_hand(params, config, one, cache[f"mlp_out {layer}"][row], last[row]) if config.d_mlp else 0
        np.testing.assert_allclose(found.mlps[row, :, layer], expected, atol=1e-4)


def test_the_induction_head_alone_says_what_comes_next() -> None:
    """In repeats it gives the true token GAMMA, centred over the vocabulary; the other head and the embedding none."""
    params, config = induction_model()
    tokens = repeated_rows()
    found = attribution(params, config, jnp.asarray(tokens))
    repeats = slice(26, None)  # from the first token that comes a second time on
    np.testing.assert_allclose(found.heads[:, repeats, 1, 0], GAMMA * (1 - 1 / 64), rtol=1e-3)
    np.testing.assert_allclose(found.heads[:, 1:25, 1, 0], 0, atol=1e-3)
    np.testing.assert_array_equal(found.heads[:, :, 0], 0)
    np.testing.assert_array_equal(found.embedding, 0)
    np.testing.assert_allclose(found.loss_nats[:, repeats], np.log1p(63 * np.exp(-GAMMA)), atol=1e-4)
    np.testing.assert_allclose(found.loss_nats[:, 1:25], np.log(64), atol=1e-4)


def test_a_row_must_hold_something_to_predict() -> None:
    params, config = induction_model(9, 7)
    with pytest.raises(ValueError, match=r"shape \(2, 1\)"):
        direct_logit_attribution(params, np.zeros((2, 1), np.int32), config)
