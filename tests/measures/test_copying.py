"""Copying scores: hand-built, random and made-up heads, with the numbers of docs/measures.md."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.maths.factored_matrix import FactoredMatrix
from icl_jax.measures import copying
from icl_jax.measures.circuits import fold_norms, ov_circuit
from icl_jax.measures.copying import (
    MEASUREMENT,
    copying_eigenvalue,
    copying_on_random_tokens,
    copying_top1,
    logit_copying,
)
from tests.analysis.random_snapshots import check, stacked
from tests.hand_built import induction_model, repeated_rows

R = 25


def test_the_hand_built_induction_head_copies_and_the_other_does_not() -> None:
    params, config = induction_model()
    circuit = ov_circuit(fold_norms({name: np.asarray(value) for name, value in params.items()}, config))
    # The previous-token head writes where the unembedding does not read: no eigenvalues, no logits.
    np.testing.assert_allclose(copying_eigenvalue(circuit), [[0], [1]], atol=1e-9)
    assert np.sum(np.abs(circuit[1, 0].eigenvalues()) > 1e-6) == 63
    # BOS has no value, so its row is flat.
    np.testing.assert_allclose(copying_top1(circuit, np.arange(1, 64)), [[0], [1]])
    found = copying_on_random_tokens(params, jnp.asarray(repeated_rows()[:, : 1 + R]), config)
    np.testing.assert_allclose(found["source"], [[-1], [1]], atol=1e-5)
    np.testing.assert_allclose(found["source_paper"], [[-1], [1]], atol=1e-5)
    np.testing.assert_array_equal(found["undefined"], [[10 * R], [0]])
    # The other form counts by itself: what the induction head writes at the first of its queries.
    np.testing.assert_array_equal(found["output_undefined"], [[10 * (R - 1)], [10]])


@pytest.mark.parametrize(("d_head", "d_model", "sd"), [(16, 64, 0.09), (32, 128, 0.042), (64, 256, 0.030)])
def test_random_heads_have_eigenvalues_that_cancel(d_head: int, d_model: int, sd: float) -> None:
    rng = np.random.default_rng(0)
    n = 150
    # W_U W_E of random embeddings is as good as a random matrix, so that it can stand in for V = infinity.
    circuit = FactoredMatrix(
        rng.normal(size=(n, d_head, d_model)) @ rng.normal(size=(n, d_model, d_model)),
        rng.normal(size=(n, d_model, d_head)),
    )
    scores = copying_eigenvalue(circuit)
    assert scores.mean() == pytest.approx(0, abs=4 * sd / np.sqrt(n))
    assert scores.std() == pytest.approx(sd, rel=0.35)


def test_eigenvalue_form_of_dense_circuits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "_BLOCK", 5)  # 29 tokens in several blocks, the last not full
    config = ModelConfig(n_layers=2, d_model=18, n_heads=3, n_ctx=9, vocab_size=29, norm="layernorm")
    params = stacked(config)
    found = check(MEASUREMENT, config, params)
    circuit = ov_circuit(fold_norms(params, config))
    for index in np.ndindex(2, 2, 3):
        eigenvalues = np.linalg.eigvals(circuit[index].AB)
        expected = eigenvalues.real.sum() / np.abs(eigenvalues).sum()
        assert found["copying_eigenvalue"][index] == pytest.approx(expected, abs=1e-6)
        assert eigenvalues.real.sum() == pytest.approx(circuit[index].trace(), rel=1e-8)
        assert found["copying_top1"][index] == np.mean(np.argmax(circuit[index].AB, axis=1) == np.arange(29))


def test_random_logits_give_the_published_baselines() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(400, R, R)), jnp.float32)
    result = logit_copying(logits, jnp.broadcast_to(jnp.arange(R)[None], (400, R)))
    assert result.ratio.mean() == pytest.approx(0.040, abs=0.001)
    assert 2 * result.ratio.mean() - 1 == pytest.approx(-0.92, abs=0.005)
    assert result.paper_range.mean() == pytest.approx(-0.86, abs=0.01)
    assert (result.n_undefined == 0).all()
    # Sampled tokens up to the query only; the first query sees one token and has nothing to compare.
    causal = [logit_copying(logits[:, k : k + 1, : k + 1], jnp.full((400, 1), k)).ratio.mean() for k in range(1, R)]
    assert 2 * np.mean(causal) - 1 == pytest.approx(-0.775, abs=0.01)


def test_range_and_undefined_positions_of_the_logit_form() -> None:
    attended = jnp.arange(5)
    copies, spares, flat = jnp.eye(5), -jnp.eye(5), jnp.ones((5, 5))
    for logits, ratio, paper, n_undefined in ((copies, 1, 1, 0), (spares, 0, -1, 0), (flat, 0, -1, 5)):
        result = logit_copying(logits, attended)
        assert result.ratio == pytest.approx(ratio, abs=1e-6)
        assert result.paper_range == pytest.approx(paper, abs=1e-6)
        assert result.n_undefined == n_undefined
    # By hand: centred rows are (2, -1, -1) and (-1, 1, 0): the token attended to gets all, and none.
    by_hand = logit_copying(jnp.array([[3.0, 0, 0], [0, 2, 1]]), jnp.array([0, 2]))
    assert by_hand.ratio == pytest.approx(0.5)
    assert by_hand.paper_range == pytest.approx(0)


def _attends_back(gain: float) -> tuple[dict[str, jnp.ndarray], ModelConfig]:
    """The previous-token head of the hand-built model with an OV circuit tok -> out of the given gain."""
    params, config = induction_model()
    v = config.vocab_size
    W_O = np.zeros(params["W_O"].shape, np.float32)
    W_O[0, 0, :v, 2 * v : 3 * v] = gain * np.eye(v)
    return {**params, "W_O": jnp.asarray(W_O)}, config


@pytest.mark.parametrize(("gain", "score"), [(2.0, 1.0), (-2.0, -1.0)])
def test_output_form_asks_for_the_token_attended_to(gain: float, score: float) -> None:
    params, config = _attends_back(gain)
    found = copying_on_random_tokens(params, jnp.asarray(repeated_rows()[:, : 1 + R]), config)
    np.testing.assert_allclose(found["output"][0], [score], atol=1e-5)
    np.testing.assert_allclose(found["source"][0], [score], atol=1e-5)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_logit_form_is_that_of_the_folded_circuit_where_the_norm_scale_cancels(norm: str) -> None:
    """In layer 0 a value is the folded circuit's row up to a positive scale."""
    config = ModelConfig(n_layers=1, d_model=18, n_heads=3, n_ctx=26, vocab_size=40, norm=norm)
    params = stacked(config, n_snapshots=1)
    tokens = np.concatenate([[0], np.random.default_rng(0).permutation(np.arange(1, 40))[:R]])
    circuit = ov_circuit(fold_norms(params, config))[0, 0]
    found = copying_on_random_tokens(
        {name: jnp.asarray(value[0]) for name, value in params.items()}, jnp.asarray(tokens[None], jnp.int32), config
    )
    sampled = tokens[1:]
    for head in range(3):
        logits = jnp.asarray(circuit[head].AB[np.ix_(sampled, sampled)], jnp.float32)
        expected = logit_copying(logits, jnp.arange(R))
        assert found["source"][0, head] == pytest.approx(2 * float(expected.ratio) - 1, abs=1e-4)


def test_an_untrained_model_scores_as_random() -> None:
    model = ModelConfig(n_layers=2, d_model=64, n_heads=4, n_ctx=101, vocab_size=64)
    found = check(MEASUREMENT, model, stacked(model, n_snapshots=3))
    assert found["copying_logit"].mean() == pytest.approx(-0.92, abs=0.03)
    assert np.abs(found["copying_eigenvalue"]).max() < 4 * 0.09
    assert found["copying_top1"].mean() == pytest.approx(1 / 64, abs=0.02)
