"""The bigram table of a zero-layer model against counts."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.measures import bigrams
from icl_jax.measures.bigrams import MEASUREMENT, bigram_fit, count_bigrams, log_bigram_table
from icl_jax.model.forward import forward
from tests.analysis.random_snapshots import check, context, stacked
from tests.model.random_params import random_params

V = 11


@pytest.mark.parametrize("norm", ["none", "rmsnorm", "layernorm"])
def test_the_table_is_the_model(norm: str) -> None:
    config = ModelConfig(n_layers=0, d_model=6, n_heads=2, n_ctx=4, vocab_size=V, norm=norm)
    params = random_params(config)
    logits = np.asarray(forward(params, jnp.arange(V)[:, None], config)[:, 0])
    table = np.asarray(log_bigram_table(params, config))
    np.testing.assert_allclose(np.exp(table).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(table - table.mean(1, keepdims=True), logits - logits.mean(1, keepdims=True), atol=1e-5)


def test_counting() -> None:
    counts = count_bigrams(np.array([[0, 1, 1, 2], [0, 1, 2, 0]]), 3)
    np.testing.assert_array_equal(counts, [[0, 2, 0], [0, 1, 2], [1, 0, 0]])


def test_the_corpus_own_table_has_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigrams, "_ROWS_AT_A_TIME", 3)
    counts = np.random.default_rng(0).integers(0, 30, (V, V))
    with np.errstate(divide="ignore"):
        own = np.log(counts / counts.sum(1, keepdims=True))
    fit = bigram_fit(own.clip(-50), counts)
    assert fit.loss_gap == pytest.approx(0, abs=1e-12)
    assert fit.pearson == pytest.approx(1, abs=1e-9)
    p = counts / counts.sum(1, keepdims=True)
    entropy = -np.sum(counts / counts.sum() * np.log(np.where(p > 0, p, 1)))
    assert fit.entropy == pytest.approx(entropy)
    smoothed = (counts + 1 / V) / (counts.sum(1, keepdims=True) + 1)
    assert bigram_fit(np.log(smoothed), counts).kl == pytest.approx(0, abs=1e-12)


def test_by_hand() -> None:
    counts = np.array([[3, 1], [0, 4]])
    log_probs = np.log([[0.5, 0.5], [0.25, 0.75]])
    fit = bigram_fit(log_probs, counts)
    entropy = -(3 * math.log(0.75) + math.log(0.25)) / 8
    assert fit.entropy == pytest.approx(entropy)
    assert fit.loss_gap == pytest.approx((4 * math.log(2) - 4 * math.log(0.75)) / 8 - entropy)
    first = 0.7 * math.log(0.7 / 0.5) + 0.3 * math.log(0.3 / 0.5)
    second = 0.1 * math.log(0.1 / 0.25) + 0.9 * math.log(0.9 / 0.75)
    assert fit.kl == pytest.approx((first + second) / 2)
    # The first row's model is flat, the second row has one seen bigram.
    assert np.isnan(fit.pearson)
    assert bigram_fit(np.log([[0.6, 0.4], [0.25, 0.75]]), counts).pearson == pytest.approx(1)
    with pytest.raises(ValueError, match="no bigram"):
        bigram_fit(log_probs, np.zeros((2, 2), np.int64))


def test_uniform_predictions_miss_the_entropy_by_what_is_left_of_ln_v() -> None:
    counts = np.random.default_rng(1).integers(0, 30, (V, V))
    fit = bigram_fit(np.full((V, V), -math.log(V)), counts)
    assert fit.loss_gap == pytest.approx(math.log(V) - fit.entropy)


def test_measured_over_snapshots() -> None:
    model = ModelConfig(n_layers=0, d_model=6, n_heads=2, n_ctx=9, vocab_size=V)
    params = stacked(model)
    from_rows = check(MEASUREMENT, model, params)
    counts = count_bigrams(context(model).held_out, V)
    setting = dataclasses.replace(context(model), bigram_counts=2 * counts)
    from_counts = MEASUREMENT.measure(setting, params)
    np.testing.assert_allclose(from_counts["bigram_loss_gap"], from_rows["bigram_loss_gap"], rtol=1e-12)
    assert (from_counts["bigram_kl"] != from_rows["bigram_kl"]).all()
    reason = MEASUREMENT.why_not(context(ModelConfig(n_layers=2)))
    assert reason is not None
    assert "model.n_layers = 2" in reason
