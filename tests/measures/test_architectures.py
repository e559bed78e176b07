"""Measurements of models with any option: the right numbers, or absent with the reason."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.analysis import ablate, direct_logit_attribution
from icl_jax.config import ModelConfig
from icl_jax.maths.factored_matrix import FactoredMatrix
from icl_jax.measures import circuits, composition, memory_recall, paths, qk_trace, skip_trigrams, term_importance
from icl_jax.measures.measurement import Measurement
from icl_jax.model.forward import forward, run_with_cache
from icl_jax.model.loss import losses
from icl_jax.model.params import Params
from tests.analysis.random_snapshots import check, context, stacked
from tests.analysis.small_runs import random_rows
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.random_params import random_params, random_tokens

ARCHITECTURES = OPTIONS | FAMILIES
SIZES = {"n_layers": 2, "d_model": 20, "n_heads": 5, "n_ctx": 9, "vocab_size": 13}


def _config(name: str = "", **more: Any) -> ModelConfig:
    return ModelConfig(**SIZES | ARCHITECTURES.get(name, {}) | more)


@pytest.mark.parametrize(
    "name",
    ["one key head", "parallel, one norm", "parallel, two norms", "norm of what is written", "norms on both sides"],
)
def test_an_ablated_head_is_one_whose_values_are_taken_out_of_the_forward_pass(name: str) -> None:
    config = _config(name)
    params, rows = random_params(config), random_rows(config, 3)
    found = jax.jit(lambda params: ablate(params, rows, config)["full"])(params)

    @jax.jit
    def without(params: Params, layer: jax.Array, head: jax.Array) -> jax.Array:
        def tap(_name: str, at: int, z: jax.Array) -> jax.Array:
            is_out = (at == layer) & (jnp.arange(z.shape[1]) == head)
            return jnp.where(is_out[None, :, None, None], 0, z)

        return losses(params, jnp.asarray(rows), config, tap=tap, seen=("z",))

    intact = losses(params, jnp.asarray(rows), config)
    for layer, head in ((0, 0), (0, 3), (1, 1)):
        expected = without(params, layer, head)
        np.testing.assert_allclose(found[layer, head], expected, atol=1e-5)
        assert np.abs(expected - intact).max() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["biases", "one key head", "norm of what is written", "norms on both sides", "soft caps", *FAMILIES],
)
def test_terms_of_a_logit_add_up(name: str) -> None:
    config = _config(name)
    params, tokens = random_params(config), random_tokens(config, 3, config.n_ctx)
    found = direct_logit_attribution(params, tokens, config)
    logits = np.asarray(forward(params, tokens, config))[:, :-1]
    if config.logit_soft_cap:
        logits = config.logit_soft_cap * np.arctanh(logits / config.logit_soft_cap)
    targets = np.asarray(tokens)[:, 1:, None]
    centred = np.take_along_axis(logits, targets, -1)[..., 0] - logits.mean(-1)
    whole = found.embedding + np.sum(found.heads, axis=(2, 3)) + np.sum(found.mlps, axis=2) + found.biases
    np.testing.assert_allclose(found.logit, centred, atol=1e-4)
    np.testing.assert_allclose(whole, centred, atol=1e-4)
    assert bool(np.any(found.biases)) == bool({"b_O", "b_U"} & set(config.biases))


@pytest.mark.parametrize(
    "name", ["grouped keys", "partial rotary", "wide heads", "no rotary in layer 1", "key offset", "smear gate"]
)
def test_paths_and_score_terms_add_up_to_the_model(name: str) -> None:
    config = _config(name)
    found = check(paths.PATHS, config, stacked(config, 1)) | check(paths.PATH_PAIRS, config, stacked(config, 1))
    assert found["path_residual"].max() < 1e-5
    assert found["qk_term_residual"].max() < 1e-5


def test_paths_take_biases_of_queries_and_keys_with_the_pattern() -> None:
    config = _config(biases=("b_Q", "b_K"), qk_norm="head")
    assert check(paths.PATHS, config, stacked(config, 1))["path_residual"].max() < 1e-5


def test_the_circuit_between_tokens_has_the_bias_of_queries_and_shared_keys() -> None:
    """Of a model without norms and positions its scores, each row less its mean."""
    config = _config(
        positions="rotary", no_rotary_layers=(0, 1), norm="none", n_heads=4, n_kv_heads=2, d_head=6, n_ctx=14,
        biases=("b_Q", "b_K", "b_V", "b_O"),
    )  # fmt: skip
    params = stacked(config, 1)
    circuit = circuits.qk_circuit(circuits.fold_norms(params, config))[0, 0].AB
    tokens = jnp.arange(13, dtype=jnp.int32)[None]
    one = {name: jnp.asarray(value[0]) for name, value in params.items()}
    _, seen = run_with_cache(one, tokens, config, ("attn_scores",))
    last = np.asarray(seen["attn_scores", 0])[0, :, -1]  # sees all tokens
    np.testing.assert_allclose(circuit[:, -1], last - last.mean(-1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("qk_norm", ["head", "all"])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_norms_of_queries_and_outputs_are_folded_up_to_a_scale(norm: Any, qk_norm: Any) -> None:
    config = _config(
        positions="rotary", no_rotary_layers=(0, 1), norm=norm, qk_norm=qk_norm, norm_position="both", n_heads=1,
        d_head=6, biases=("b_Q",),
    )  # fmt: skip
    params, tokens = stacked(config, 1), random_tokens(config, 2, 7)
    one = {name: jnp.asarray(value[0]) for name, value in params.items()}
    _, seen = run_with_cache(one, tokens, config)
    folded = {name: value[0] for name, value in circuits.fold_norms(params, config).items()}
    x = np.asarray(seen["resid_pre", 0], np.float64)
    if norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    scale = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_eps)
    _assert_parallel(x / scale @ folded["W_Q"][0, 0] + folded["b_Q"][0, 0], np.asarray(seen["q", 0])[:, 0])
    z = np.asarray(seen["z", 0], np.float64)[:, 0]
    added = np.asarray(seen["resid_mid", 0], np.float64) - np.asarray(seen["resid_pre", 0])
    if norm == "layernorm":  # readers do not see the mean
        added = added - added.mean(-1, keepdims=True)
    _assert_parallel(z @ folded["W_O"][0, 0], added)


def _assert_parallel(a: np.ndarray, b: np.ndarray) -> None:
    cosine = np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


def test_composition_of_shared_keys_is_that_of_keys_repeated() -> None:
    config = _config("grouped keys")
    params = stacked(config, 2)
    whole = _config(n_heads=4)
    repeated = params | {name: np.repeat(params[name], 2, axis=2) for name in ("W_K", "W_V")}
    shared = composition.MEASUREMENT.measure(context(config), params)
    for name, expected in composition.MEASUREMENT.measure(context(whole), repeated).items():
        np.testing.assert_array_equal(shared[name], expected)
    # A factored matrix of the shared keys themselves would not even have so many heads.
    assert FactoredMatrix(params["W_Q"][:, :, :2], params["W_K"].mT).shape[2] == 2


@pytest.mark.parametrize(
    ("measurement", "fields", "why"),
    [
        (paths.PATHS, {"biases": ("b_V",)}, "model.biases has b_V"),
        (paths.PATHS, {"norm_position": "post"}, "model.norm_position = 'post'"),
        (paths.PATHS, {"logit_soft_cap": 3.0}, "model.logit_soft_cap = 3.0"),
        (term_importance.MEASUREMENT, {"biases": ("b_U", "b_O")}, "model.biases has b_O, b_U"),
        (paths.PATH_PAIRS, {"biases": ("b_Q",)}, "model.biases has b_Q"),
        (paths.PATH_PAIRS, {"qk_norm": "all"}, "model.qk_norm = 'all'"),
        (paths.PATH_PAIRS, {"window": 3}, "only without ALiBi, a cap and a window"),
        (paths.PATH_PAIRS, {"positions": "alibi"}, "only without ALiBi, a cap and a window"),
        (paths.PATH_PAIRS, {"attn_soft_cap": 2.0}, "only without ALiBi, a cap and a window"),
        (qk_trace.MEASUREMENT, {"qk_norm": "head"}, "model.qk_norm = 'head'"),
        (skip_trigrams.MEASUREMENT, {"qk_norm": "head", "n_layers": 1}, "model.qk_norm = 'head'"),
    ],
)
def test_what_is_not_defined_says_why(measurement: Measurement, fields: dict[str, Any], why: str) -> None:
    reason = measurement.why_not(context(_config(**fields)))
    assert reason is not None
    assert why in reason
    assert "qk_norm" not in why or memory_recall.needs_plain_keys(context(_config(**fields)))


def test_sizes_of_normalised_queries_and_keys_are_missing() -> None:
    config = _config("norm of queries and keys")
    found = check(circuits.MEASUREMENT, config, stacked(config, 1))
    assert {name for name, value in found.items() if np.isnan(value).all()} == set(circuits._SCORES)
