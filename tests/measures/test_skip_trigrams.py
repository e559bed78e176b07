"""Triples against all V^3 of them, a head written by hand, and text made to bear triples out."""

import itertools

import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.measures import skip_trigrams
from icl_jax.measures.circuits import fold_norms, ov_circuit, qk_circuit, seen_embedding
from icl_jax.measures.skip_trigrams import (
    MEASUREMENT,
    HeadCircuits,
    TextCheck,
    TextIndex,
    Triples,
    head_circuits,
    precision,
    top_triples,
)
from tests.analysis.random_snapshots import check, context, stacked

V = 13


def _one(config: ModelConfig) -> dict[str, np.ndarray]:
    return {name: value[0] for name, value in fold_norms(stacked(config, n_snapshots=1), config).items()}


@pytest.mark.parametrize("norm", ["none", "rmsnorm", "layernorm"])
def test_triples_are_the_best_of_all(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_trigrams, "_BLOCK", 5)  # 13 tokens in several blocks, the last not full
    config = ModelConfig(n_layers=1, d_model=12, n_heads=2, n_ctx=9, vocab_size=V, norm=norm)
    weights = _one(config)
    seen = {**weights, "W_E": seen_embedding(weights, config)}
    qk, ov = qk_circuit(seen)[0, 1].AB, ov_circuit(seen)[0, 1].AB
    qk, ov = qk / np.sqrt(np.mean(qk**2)), ov / np.sqrt(np.mean(ov**2))
    expected = sorted(
        ((qk[b, a] + ov[a, c], a, b, c) for a, b, c in itertools.product(range(V), repeat=3) if a not in (0, 4)),
        reverse=True,
    )
    # 4 is fewer than there are sources: the best of them must be picked first.
    for top in (60, 4):
        found = top_triples(head_circuits(weights, config, 1), np.array([0, 4]), top)
        np.testing.assert_allclose(found.score, [score for score, *_ in expected[:top]], rtol=1e-5)
        triples = list(zip(found.source, found.destination, found.out, strict=True))
        assert triples == [tuple(ids) for _, *ids in expected[:top]]


def test_there_are_no_more_triples_than_there_are() -> None:
    rng = np.random.default_rng(0)
    circuits = HeadCircuits(*(rng.normal(size=shape) for shape in ((3, 2), (3, 2), (3, 2), (2, 3))))
    found = top_triples(circuits, np.array([1]), top=100)
    assert len(found.score) == 2 * 3 * 3
    assert set(found.source) == {0, 2}


def test_a_head_without_weights_has_scores_of_zero() -> None:
    config = ModelConfig(n_layers=1, d_model=12, n_heads=2, n_ctx=9, vocab_size=V)
    weights = {**_one(config), "W_O": np.zeros((1, 2, 6, 12)), "W_K": np.zeros((1, 2, 12, 6))}
    assert (top_triples(head_circuits(weights, config, 0), np.array([0])).score == 0).all()


def test_check_in_text_by_hand() -> None:
    a, b, c, x = 1, 2, 3, 4
    rows = np.array([[0, a, b, c, b, c], [0, b, x, b, a, b], [0, x, b, x, x, a]], np.int32)
    # b is followed by: c, c (after a), x, a (before it), x. The last b has no successor in its row.
    triples = Triples(np.array([a, a, x, 9]), np.array([b, b, b, b]), np.array([c, x, a, c]), np.zeros(4))
    result = TextIndex(rows, 10).check(triples)
    np.testing.assert_array_equal(result.n_after_source, [2, 2, 2, 0])
    # P(c|b) = 2/5, P(x|b) = 2/5, P(a|b) = 1/5; after x, b is followed by a once and x once.
    np.testing.assert_allclose(result.lift, [1 - 0.4, 0 - 0.4, 0.5 - 0.2, 0])


def test_precision_counts_supported_triples_only() -> None:
    found = TextCheck(np.array([9, 5, 4, 0]), np.array([0.1, -0.1, 0.5, 0.0]))
    assert precision(found) == 0.5
    assert precision(found, min_support=1) == pytest.approx(2 / 3)
    assert np.isnan(precision(found, min_support=10))


def test_a_head_that_holds_the_triples_of_a_text_finds_them() -> None:
    """Tokens 1-5 are sources; after b = 6, source a is followed by c = 6 + a. Else b is followed by anything."""
    rng = np.random.default_rng(0)
    config = ModelConfig(n_layers=1, d_model=24, n_heads=1, n_ctx=20, vocab_size=12, norm="none")
    rows = rng.integers(7, 12, (200, 21)).astype(np.int32)
    rows[:, 0] = 0
    rows[:, 3] = rng.integers(1, 6, 200)
    rows[:, 12], rows[:, 13] = 6, 6 + rows[:, 3]
    rows[:, 1], rows[:, 17] = 6, 6
    weights = {name: np.zeros(shape) for name, shape in (("W_E", (12, 24)), ("W_U", (24, 12)))}
    weights["W_E"][:, :12], weights["W_U"][12:] = np.eye(12), np.eye(12)
    weights |= {name: np.zeros((1, 1, 24, 24)) for name in ("W_Q", "W_K", "W_V", "W_O")}
    weights["W_Q"][0, 0, 6, 0] = 1
    for a in range(1, 6):
        weights["W_K"][0, 0, a, 0] = 1
        weights["W_V"][0, 0, a, a] = 1
        weights["W_O"][0, 0, a, 12 + 6 + a] = 1
    triples = top_triples(head_circuits(weights, config, 0), np.array([0]), top=5)
    found = set(zip(triples.source, triples.destination, triples.out, strict=True))
    assert found == {(a, 6, 6 + a) for a in range(1, 6)}
    assert precision(TextIndex(rows, 12).check(triples)) == 1
    wrong = triples._replace(source=1 + triples.source % 5)
    assert precision(TextIndex(rows, 12).check(wrong)) == 0


def test_measured_over_snapshots() -> None:
    model = ModelConfig(n_layers=1, d_model=12, n_heads=2, n_ctx=9, vocab_size=V)
    found = check(MEASUREMENT, model, stacked(model))
    assert found["skip_trigram_source"].shape == (2, 2, 100)
    assert not (found["skip_trigram_source"] == 0).any()
    np.testing.assert_array_equal(
        found["skip_trigram_copies"], np.mean(found["skip_trigram_source"] == found["skip_trigram_out"], axis=-1)
    )
    assert (np.diff(found["skip_trigram_score"], axis=-1) <= 0).all()


@pytest.mark.parametrize("n_layers", [0, 2])
def test_only_one_layer_is_made_of_skip_trigrams(n_layers: int) -> None:
    reason = MEASUREMENT.why_not(context(ModelConfig(n_layers=n_layers)))
    assert reason is not None
    assert f"model.n_layers = {n_layers}" in reason
