"""Circuits against products written out, and norm weights folded in against the model itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.measures.circuits import (
    MEASUREMENT,
    direct_path,
    fold_norms,
    ov_circuit,
    position_circuit,
    qk_circuit,
    qk_matrix,
    rotation,
    seen_embedding,
    token_std,
)
from icl_jax.model.forward import forward, run_with_cache
from icl_jax.model.positions import rotary_frequencies, rotate, sinusoidal
from tests.analysis.random_snapshots import check, context, stacked
from tests.model.random_params import random_params, random_tokens

CONFIG = ModelConfig(
    n_layers=2, d_model=30, n_heads=3, n_ctx=7, vocab_size=23, position_embedding="learned", norm="none"
)


def test_circuits_are_the_products_of_the_framework() -> None:
    params = stacked(CONFIG, n_snapshots=2)
    weights = fold_norms(params, CONFIG)
    s, n, h = 1, 0, 2
    W_E, W_U = params["W_E"][s], params["W_U"][s]
    W_Q, W_K, W_V, W_O = (params[name][s, n, h] for name in ("W_Q", "W_K", "W_V", "W_O"))
    qk = W_E @ W_Q @ W_K.T @ W_E.T / np.sqrt(10)
    np.testing.assert_allclose(qk_matrix(weights)[s, n, h].AB, W_Q @ W_K.T, atol=1e-5)
    np.testing.assert_allclose(qk_circuit(weights)[s, n, h].AB, qk - qk.mean(1, keepdims=True), atol=1e-4)
    ov = W_E @ W_V @ W_O @ W_U
    np.testing.assert_allclose(ov_circuit(weights)[s, n, h].AB, ov - ov.mean(1, keepdims=True), atol=1e-4)
    direct = W_E @ W_U
    np.testing.assert_allclose(direct_path(weights)[s].AB, direct - direct.mean(1, keepdims=True), atol=1e-5)
    assert qk_circuit(weights).shape == ov_circuit(weights).shape == (2, 2, 3, 23, 23)
    np.testing.assert_allclose(
        token_std(qk_circuit(weights))[s, n, h], qk_circuit(weights)[s, n, h].AB.std(), rtol=1e-9
    )


@pytest.mark.parametrize("norm", ["none", "rmsnorm", "layernorm"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("d_mlp", [0, 13])
@pytest.mark.parametrize("positions", ["rotary", "standard"])
def test_a_model_with_folded_norms_is_the_same_model(norm: str, tied: bool, d_mlp: int, positions: str) -> None:
    config = ModelConfig(
        n_layers=2, d_model=12, n_heads=3, n_ctx=11, vocab_size=19, norm=norm, positions=positions, d_mlp=d_mlp,
        position_embedding="learned", tied_unembedding=tied,
    )  # fmt: skip
    params, tokens = random_params(config), random_tokens(config, 2, 11)
    weights = fold_norms({name: np.asarray(value) for name, value in params.items()}, config)
    if norm == "layernorm":
        for name in ("W_E", "W_O", "W_out", "W_Q", "W_K", "W_V", "W_in", "W_U"):
            if name in weights:
                axis_D = -1 if name in ("W_E", "W_O", "W_out") else -2
                np.testing.assert_allclose(weights[name].mean(axis_D), 0, atol=1e-7)
    folded = {name: jnp.asarray(value, jnp.float32) for name, value in weights.items()}
    # Weights of 1 in a norm that does not centre: LayerNorm's centring must be in the folded matrices already.
    folded |= {name: jnp.ones_like(value) for name, value in params.items() if name.startswith("ln")}
    plain = ModelConfig(
        n_layers=2, d_model=12, n_heads=3, n_ctx=11, vocab_size=19, norm="none" if norm == "none" else "rmsnorm",
        positions=positions, d_mlp=d_mlp, position_embedding="learned",
    )  # fmt: skip
    np.testing.assert_allclose(forward(folded, tokens, plain), forward(params, tokens, config), atol=2e-5)


@pytest.mark.parametrize("positions", ["shortformer", "standard"])
@pytest.mark.parametrize("embedding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("norm", ["none", "layernorm"])
def test_position_circuit_is_the_score_between_positions(positions: str, embedding: str, norm: str) -> None:
    config = ModelConfig(
        n_layers=2,
        d_model=12,
        n_heads=3,
        n_ctx=7,
        vocab_size=5,
        positions=positions,
        position_embedding=embedding,
        norm=norm,
    )
    params = stacked(config, n_snapshots=2)
    found = position_circuit(params, config)
    assert found.shape == (2, 2, 3, 7, 7)
    s, n, h = 1, 1, 0
    W_pos = params["W_pos"][s] if embedding == "learned" else sinusoidal(7, 12)
    if positions == "standard" and norm == "layernorm":
        W_pos = (W_pos - W_pos.mean(1, keepdims=True)) * params["ln1_w"][s, n]
    q, k = W_pos @ params["W_Q"][s, n, h], W_pos @ params["W_K"][s, n, h]
    for query in range(7):
        scores = q[query] @ k[: query + 1].T / 2
        np.testing.assert_allclose(found[s, n, h, query, : query + 1], scores - scores.mean(), atol=1e-5)
        assert (found[s, n, h, query, query + 1 :] == 0).all()


def test_token_and_position_blocks_make_up_the_scores_of_a_model_without_norms() -> None:
    params, tokens = random_params(CONFIG), random_tokens(CONFIG, 1, 7)
    one = {name: np.asarray(value) for name, value in params.items()}
    weights = fold_norms(one, CONFIG)
    _, cache = run_with_cache(params, tokens, CONFIG, ("attn_scores",))
    row = np.asarray(tokens[0])
    for query in range(7):
        # The cross blocks are what is left: W_E on one side, W_pos on the other.
        tokens_only = qk_circuit(weights)[0, 1].AB[row[query], row[: query + 1]]
        positions_only = position_circuit(one, CONFIG)[0, 1, query, : query + 1]
        W_QK = (one["W_Q"] @ one["W_K"].mT)[0, 1] / np.sqrt(10)
        x, p = one["W_E"][row], one["W_pos"]
        crossed = (x[query] @ W_QK @ p[: query + 1].T) + (p[query] @ W_QK @ x[: query + 1].T)
        total, scores = (
            tokens_only + positions_only + crossed,
            np.asarray(cache["attn_scores", 0][0, 1, query, : query + 1]),
        )
        np.testing.assert_allclose(total - total.mean(), scores - scores.mean(), atol=1e-4)


def test_rotary_positions_have_a_rotation_in_place_of_a_position_circuit() -> None:
    config = ModelConfig(positions="rotary", d_head=6, rotary_dim=4)
    with pytest.raises(ValueError, match="rotary"):
        position_circuit(stacked(config, n_snapshots=1), config)
    frequencies = rotary_frequencies(config)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 9, 6)), jnp.float32) for _ in range(2))
    scores = np.asarray(rotate(q, frequencies) @ rotate(k, frequencies).mT)[0, 0]
    expected = np.asarray(q)[0, 0, 7] @ rotation(5, config) @ np.asarray(k)[0, 0, 2]
    np.testing.assert_allclose(scores[7, 2], expected, atol=1e-5)


def test_measured_over_snapshots() -> None:
    params = stacked(CONFIG)
    found = check(MEASUREMENT, CONFIG, params)
    weights = fold_norms(params, CONFIG)
    s, n, h = 1, 1, 2
    assert found["qk_norm"][s, n, h] == pytest.approx(np.linalg.norm(params["W_Q"][s, n, h] @ params["W_K"][s, n, h].T))
    assert found["ov_norm"][s, n, h] == pytest.approx(np.linalg.norm(params["W_V"][s, n, h] @ params["W_O"][s, n, h]))
    assert found["qk_token_std"][s, n, h] == pytest.approx(qk_circuit(weights)[s, n, h].AB.std())
    assert found["ov_token_std"][s, n, h] == pytest.approx(ov_circuit(weights)[s, n, h].AB.std())
    visible = position_circuit(params, CONFIG)[s, n, h][np.tri(7, dtype=bool)]
    assert found["qk_position_std"][s, n, h] == pytest.approx(np.sqrt(np.mean(visible**2)))
    rotary = ModelConfig(n_layers=2, d_model=24, n_heads=3, n_ctx=7, vocab_size=23, positions="rotary")
    assert np.isnan(check(MEASUREMENT, rotary, stacked(rotary))["qk_position_std"]).all()


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_seen_embedding_is_what_the_first_layer_reads(norm: str) -> None:
    config = ModelConfig(n_layers=1, d_model=12, n_heads=3, n_ctx=23, vocab_size=23, norm=norm)
    params, tokens = random_params(config), jnp.arange(23)[None]
    weights = fold_norms({name: np.asarray(value) for name, value in params.items()}, config)
    _, cache = run_with_cache(params, tokens, config, ("v",))
    values = seen_embedding(weights, config) @ weights["W_V"][0]
    np.testing.assert_allclose(values, cache["v", 0][0], atol=1e-5)
    found = MEASUREMENT.measure(context(config), stacked(config, n_snapshots=1))
    seen = {**weights, "W_E": seen_embedding(weights, config)}
    np.testing.assert_allclose(found["qk_token_std"][0], qk_circuit(seen).AB.std(axis=(-2, -1)), rtol=1e-6)
    np.testing.assert_allclose(found["ov_token_std"][0], ov_circuit(seen).AB.std(axis=(-2, -1)), rtol=1e-6)
