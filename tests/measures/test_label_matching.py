"""Attention at labelled tokens against loops in NumPy, and on the hand-built induction model."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.analysis import patterns
from icl_jax.config import ModelConfig
from icl_jax.maths.head_scores import followers
from icl_jax.measures.label_matching import MEASUREMENT
from icl_jax.measures.measurement import Context
from tests.analysis.random_snapshots import context, stacked
from tests.hand_built import induction_model

MODEL = ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=13, vocab_size=5)


def _labelled(setting: Context, labels: np.ndarray) -> Context:
    return dataclasses.replace(setting, label_names=("a", "b", "never"), labels=labels)


@pytest.mark.parametrize("n_rows", [6, 11])
def test_scores_are_sums_over_the_pattern(n_rows: int) -> None:
    setting = context(MODEL, n_rows)
    labels = np.random.default_rng(5).integers(0, 3, setting.held_out.shape).astype(np.uint8)
    params = stacked(MODEL)
    found = MEASUREMENT.measure(_labelled(setting, labels), params)["label_matching"]
    assert found.shape == (2, 3, 2, 3)
    for s in range(2):
        one = {name: jnp.asarray(value[s]) for name, value in params.items()}
        pattern = np.asarray(patterns(one, setting.held_out[:, :-1], MODEL))
        for number in (1, 2):
            each = []
            for b, row in enumerate(setting.held_out):
                for q in range(MODEL.n_ctx):
                    keys = [k + 1 for k in range(q) if row[k] == row[q]]
                    if labels[b, q + 1] == number and keys:
                        each.append(pattern[:, b, :, q, keys].sum(0))
            np.testing.assert_allclose(found[s, number - 1], np.mean(each, axis=0), rtol=1e-5)
        assert np.isnan(found[s, 2]).all()


def test_followers_of_a_row_said_twice() -> None:
    found = np.asarray(followers(jnp.asarray([[0, 3, 1, 3, 1, 1]])))[0]
    expected = np.zeros((6, 6), bool)
    expected[3, 2] = expected[4, 3] = expected[5, 3] = expected[5, 5] = True
    np.testing.assert_array_equal(found, expected)


def test_an_induction_head_matches_where_it_is_asked_to() -> None:
    params, config = induction_model(n_ctx=40)
    block = np.random.default_rng(0).permutation(np.arange(1, config.vocab_size))[:20]
    rows = np.concatenate([[0], block, block])[None].astype(np.int32)
    labels = np.repeat(np.array([0, 2, 0, 1], np.uint8), [1, 20, 1, 19])[None]
    setting = dataclasses.replace(_labelled(context(config), labels), held_out=rows)
    found = MEASUREMENT.measure(setting, {name: np.asarray(value)[None] for name, value in params.items()})
    score = found["label_matching"][0]
    np.testing.assert_allclose(score[0, :, 0], [0, 1], atol=1e-3)
    assert np.isnan(score[1]).all(), "in the first copy nothing occurred before"


def test_where_it_is_undefined() -> None:
    assert "label" in (MEASUREMENT.why_not(context(MODEL)) or "")
    none = dataclasses.replace(MODEL, n_layers=0)
    labels = np.zeros((6, none.n_ctx + 1), np.uint8)
    assert "no layers" in (MEASUREMENT.why_not(_labelled(context(none), labels)) or "")
