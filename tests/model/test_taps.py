"""Taps see every activation, may replace it, and cost nothing where no one asks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.model import execution
from icl_jax.model.forward import forward, run_with_cache
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params
from tests.model.program_arrays import array_shapes
from tests.model.random_params import random_params, random_tokens

B, T, H, E, M, V, N = 2, 7, 3, 4, 17, 29, 2
D = H * E
SHAPES = {
    "resid_pre": (B, T, D),
    "q": (B, H, T, E),
    "k": (B, H, T, E),
    "v": (B, H, T, E),
    "attn_scores": (B, H, T, T),
    "pattern": (B, H, T, T),
    "z": (B, H, T, E),
    "result": (B, T, H, D),
    "resid_mid": (B, T, D),
    "mlp_out": (B, T, D),
    "resid_post": (B, T, D),
}


def _config(**fields: Any) -> ModelConfig:
    sizes = {"n_layers": N, "d_model": D, "n_heads": H, "d_mlp": M, "n_ctx": 9, "vocab_size": V}
    return ModelConfig(**{**sizes, "smeared_keys": True, "attention": "reference", **fields})


CONFIG = _config()


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def tokens() -> jax.Array:
    return random_tokens(CONFIG, B, T)


def _replace(name: str, layer: int, change: Any) -> Any:
    def tap(seen_name: str, seen_layer: int, value: jax.Array) -> jax.Array:
        return change(value) if (seen_name, seen_layer) == (name, layer) else value

    return tap


@pytest.mark.parametrize("attention", ["reference", "blocked"])
def test_reading_changes_nothing_and_sees_everything_in_order(
    params: Params, tokens: jax.Array, attention: Any
) -> None:
    config = dataclasses.replace(CONFIG, attention=attention)
    seen: list[tuple[str, int]] = []

    def tap(name: str, layer: int, value: jax.Array) -> jax.Array:
        seen.append((name, layer))
        assert value.shape == SHAPES[name]
        assert value.dtype == jnp.float32
        return value

    tapped = forward(params, tokens, config, tap=tap)
    np.testing.assert_allclose(tapped, forward(params, tokens, config), atol=1e-5)
    assert seen == [(name, layer) for layer in range(N) for name in SHAPES]


def test_a_model_without_mlps_has_no_mlp_out(tokens: jax.Array) -> None:
    config = _config(d_mlp=0)
    _, cache = run_with_cache(random_params(config), tokens, config)
    assert {name for name, _ in cache} == set(SHAPES) - {"mlp_out"}


def test_activations_fit_together(params: Params, tokens: jax.Array) -> None:
    """The documented meanings, checked against each other."""
    logits, cache = run_with_cache(params, tokens, CONFIG)
    for n in range(N):
        at = {name: np.asarray(cache[name, n]) for name in SHAPES}
        hidden = at["pattern"][:, :, np.triu(np.ones((T, T), bool), k=1)]
        np.testing.assert_array_equal(hidden, 0)
        np.testing.assert_allclose(at["pattern"].sum(-1), 1, atol=1e-6)
        np.testing.assert_allclose(jax.nn.softmax(at["attn_scores"], axis=-1), at["pattern"], atol=1e-6)
        scores = np.einsum("bhqe,bhke->bhqk", at["q"], at["k"]) / np.sqrt(E)
        is_visible = np.tril(np.ones((T, T), bool))
        np.testing.assert_allclose(at["attn_scores"][:, :, is_visible], scores[:, :, is_visible], atol=1e-5)
        np.testing.assert_allclose(at["z"], at["pattern"] @ at["v"], atol=1e-5)
        result = np.einsum("bhte,hed->bthd", at["z"], params["W_O"][n])
        np.testing.assert_allclose(at["result"], result, atol=1e-5)
        np.testing.assert_allclose(at["resid_mid"], at["resid_pre"] + at["result"].sum(2), atol=1e-5)
        np.testing.assert_allclose(at["resid_post"], at["resid_mid"] + at["mlp_out"], atol=1e-5)
    np.testing.assert_array_equal(cache["resid_pre", 0], params["W_E"][tokens])
    np.testing.assert_array_equal(cache["resid_pre", 1], cache["resid_post", 0])
    x_BTD = normalise(cache["resid_post", N - 1], params["ln_final_w"], CONFIG)
    np.testing.assert_allclose(logits, np.asarray(x_BTD) @ np.asarray(params["W_U"]), atol=1e-5)


def test_a_cache_keeps_only_the_names_asked_for(params: Params, tokens: jax.Array) -> None:
    _, cache = run_with_cache(params, tokens, CONFIG, ("pattern", "z"))
    assert set(cache) == {(name, layer) for name in ("pattern", "z") for layer in range(N)}


@pytest.mark.parametrize("layer", range(N))
def test_zeroing_a_result_removes_the_head(params: Params, tokens: jax.Array, layer: int) -> None:
    head = 1
    ablated = forward(params, tokens, CONFIG, tap=_replace("result", layer, lambda r: r.at[:, :, head].set(0)))
    without = params | {"W_O": params["W_O"].at[layer, head].set(0)}
    np.testing.assert_allclose(ablated, forward(without, tokens, CONFIG), atol=1e-5)
    assert float(jnp.abs(ablated - forward(params, tokens, CONFIG)).max()) > 0.05


def test_a_replaced_pattern_is_the_one_that_mixes(params: Params, tokens: jax.Array) -> None:
    """Each position attends to itself: z is v there, and what follows is computed from it."""
    own = jnp.broadcast_to(jnp.eye(T)[None, None], SHAPES["pattern"])
    seen: dict[str, jax.Array] = {}

    def tap(name: str, layer: int, value: jax.Array) -> jax.Array:
        if layer == 0:
            seen[name] = value
            return own if name == "pattern" else value
        return value

    replaced = forward(params, tokens, CONFIG, tap=tap)
    np.testing.assert_allclose(seen["z"], seen["v"], atol=1e-6)
    assert float(jnp.abs(replaced - forward(params, tokens, CONFIG)).max()) > 0.05


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_activation_can_be_replaced(params: Params, tokens: jax.Array, name: str) -> None:
    """In the last layer, doubled: the logits change."""
    logits = forward(params, tokens, CONFIG, tap=_replace(name, N - 1, lambda value: 2 * value))
    # The final norm undoes the doubling of the whole stream.
    if name == "resid_post":
        np.testing.assert_allclose(logits, forward(params, tokens, CONFIG), atol=1e-4)
        logits = forward(params, tokens, CONFIG, tap=_replace(name, N - 1, lambda value: value.at[..., 0].add(1)))
    assert float(jnp.abs(logits - forward(params, tokens, CONFIG)).max()) > 1e-2


def test_frozen_patterns_make_attention_linear_in_the_values(tokens: jax.Array) -> None:
    """With patterns of a first run put in, a head's only remaining part is its values (pattern-preserving ablation)."""
    config = _config(norm="none", d_mlp=0, smeared_keys=False)
    params = random_params(config)
    logits, cache = run_with_cache(params, tokens, config, ("pattern",))

    def frozen(params: Params) -> jax.Array:
        return forward(params, tokens, config, tap=lambda n, i, x: cache[n, i] if n == "pattern" else x)

    scaled = params | {"W_Q": 3 * params["W_Q"]}
    np.testing.assert_allclose(frozen(scaled), logits, atol=1e-5)
    assert float(jnp.abs(forward(scaled, tokens, config) - logits).max()) > 0.05
    # Last layer: logits are linear in its W_V.
    half = params | {"W_V": params["W_V"].at[N - 1].multiply(0.5)}
    none = params | {"W_V": params["W_V"].at[N - 1].set(0)}
    np.testing.assert_allclose(2 * (frozen(half) - frozen(none)), frozen(params) - frozen(none), atol=1e-5)


def test_without_a_tap_neither_pattern_nor_results_are_made(params: Params, tokens: jax.Array) -> None:
    """Longer than a block of the blocked attention, whose whole pattern is then no array of the program."""
    n_ctx = 67
    config = dataclasses.replace(CONFIG, n_ctx=n_ctx, attention="blocked")
    tokens = random_tokens(config, B, n_ctx)
    pattern, results = (B, H, n_ctx, n_ctx), (B, n_ctx, H, D)
    plain = array_shapes(lambda params: forward(params, tokens, config), params)
    assert pattern not in plain
    assert results not in plain
    tapped = array_shapes(lambda params: forward(params, tokens, config, tap=lambda n, i, x: x), params)
    assert pattern in tapped
    assert results in tapped


def test_a_tap_sees_every_layer_of_a_deep_model(params: Params, tokens: jax.Array, monkeypatch: Any) -> None:
    monkeypatch.setattr(execution, "_MAX_UNROLLED_LAYERS", 1)
    logits, cache = run_with_cache(params, tokens, CONFIG, ("pattern",))
    assert set(cache) == {("pattern", layer) for layer in range(N)}
    np.testing.assert_allclose(logits, forward(params, tokens, CONFIG), atol=1e-5)


def test_taps_work_under_jit(params: Params, tokens: jax.Array) -> None:
    logits, cache = jax.jit(lambda params: run_with_cache(params, tokens, CONFIG))(params)
    expected_logits, expected = run_with_cache(params, tokens, CONFIG)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5)
    assert set(cache) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(cache[key], value, atol=1e-5, err_msg=str(key))
