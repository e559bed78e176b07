"""The previous-token term of the QK circuit: the V by V matrix written out, hand-built and random heads."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.maths.factored_matrix import eigenvalue_sum_ratio
from icl_jax.measures.circuits import fold_norms
from icl_jax.measures.qk_trace import MEASUREMENT, previous_token_eigenvalues
from icl_jax.model.forward import run_with_cache
from tests.analysis.random_snapshots import check, context, stacked
from tests.hand_built import BETA, induction_model

WEIGHTS = ("W_E", "W_Q", "W_K", "W_V", "W_O")


def test_hand_built_trace_is_the_gain_times_the_vocabulary() -> None:
    params, _ = induction_model()
    eigenvalues = previous_token_eigenvalues(*(np.asarray(params[name]) for name in WEIGHTS), np.array([[1.0], [0.01]]))
    assert np.isnan(eigenvalues[0]).all()
    assert eigenvalues[1].sum().real == pytest.approx(BETA * 64, rel=1e-6)
    assert eigenvalues[1].sum().real == pytest.approx(1920, rel=1e-6)
    np.testing.assert_allclose(eigenvalue_sum_ratio(eigenvalues[1]), [1], atol=1e-9)


def test_the_term_is_that_of_the_dense_matrix() -> None:
    model = ModelConfig(n_layers=3, d_model=12, n_heads=2, n_ctx=9, vocab_size=17, norm="layernorm")
    params = stacked(model)
    found = check(MEASUREMENT, model, params)
    weights = fold_norms(params, model)
    natural = context(model).natural
    for s in range(2):
        _, cache = run_with_cache(
            {name: jnp.asarray(value[s]) for name, value in params.items()}, jnp.asarray(natural), model, ("pattern",)
        )
        patterns = np.stack([cache["pattern", layer] for layer in range(3)])
        previous = np.stack([patterns[..., i, i - 1] for i in range(1, 9)]).mean(axis=(0, 2))
        W_E, W_Q, W_K, W_V, W_O = (weights[name][s] for name in WEIGHTS)
        for layer, head in np.ndindex(3, 2):
            if layer == 0:
                assert np.isnan(found["qk_trace"][s, layer, head])
                assert np.isnan(found["qk_trace_ratio"][s, layer, head])
                continue
            W = np.zeros((17, 17))
            for earlier, e in np.ndindex(layer, 2):
                through = W_E @ W_V[earlier, e] @ W_O[earlier, e]
                W += previous[earlier, e] * W_E @ W_Q[layer, head] @ W_K[layer, head].T @ through.T / np.sqrt(6)
            assert found["qk_trace"][s, layer, head] == pytest.approx(np.trace(W), rel=1e-5, abs=1e-5)
            eigenvalues = np.linalg.eigvals(W)
            ratio = eigenvalues.real.sum() / np.abs(eigenvalues).sum()
            assert found["qk_trace_ratio"][s, layer, head] == pytest.approx(ratio, abs=1e-5)


@pytest.mark.parametrize(("d_head", "d_model", "bound"), [(64, 256, 0.1), (16, 64, 0.35)])
def test_random_heads_have_no_trace(d_head: int, d_model: int, bound: float) -> None:
    rng = np.random.default_rng(0)
    h = 4
    W_Q, W_K, W_V, W_O = (rng.normal(size=(2, h, d_model, d_head)) for _ in range(4))
    W_E = rng.normal(size=(300, d_model))
    eigenvalues = previous_token_eigenvalues(W_E, W_Q, W_K, W_V, W_O.mT, np.full((2, h), 0.04))
    assert np.abs(eigenvalue_sum_ratio(eigenvalues[1])).max() < bound


def test_only_earlier_layers_count_and_in_proportion_to_their_score() -> None:
    model = ModelConfig(n_layers=2, d_model=12, n_heads=2, n_ctx=9, vocab_size=17)
    params = stacked(model, n_snapshots=1)
    weights = [params[name] for name in WEIGHTS]
    one, two, own = (np.array([[scores]]) for scores in ([[1.0, 0], [0, 0]], [[2.0, 0], [0, 0]], [[0.0, 0], [5, 5]]))

    def trace(previous: np.ndarray) -> np.ndarray:
        return previous_token_eigenvalues(*weights, previous[0]).sum(-1).real[0, 1]

    np.testing.assert_allclose(trace(two), 2 * trace(one), rtol=1e-9)
    np.testing.assert_allclose(trace(own), 0, atol=1e-12)


def test_a_one_layer_model_has_none() -> None:
    reason = MEASUREMENT.why_not(context(ModelConfig(n_layers=1)))
    assert reason is not None
    assert "model.n_layers = 1" in reason
