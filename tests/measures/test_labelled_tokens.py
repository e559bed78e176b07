"""Predictions of labelled tokens against NumPy, and on the hand-built induction model."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.measures.labelled_tokens import MEASUREMENT
from icl_jax.measures.measurement import Context
from icl_jax.measures.snapshot import predictions
from icl_jax.model.forward import forward
from tests.analysis.random_snapshots import context, stacked
from tests.hand_built import induction_model
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=7, vocab_size=11)


def _labelled(setting: Context, labels: np.ndarray) -> Context:
    return dataclasses.replace(setting, label_names=("copy", "fresh", "never"), labels=labels)


def test_probabilities_and_ranks_are_those_of_the_logits() -> None:
    setting = context(MODEL)
    labels = np.random.default_rng(3).integers(0, 3, setting.held_out.shape).astype(np.uint8)
    setting = _labelled(setting, labels)
    params = stacked(MODEL, 3)
    found = MEASUREMENT.measure(setting, params)
    assert set(found) == set(MEASUREMENT.variables)
    for s in range(3):
        one = {name: jnp.asarray(value[s]) for name, value in params.items()}
        logits = np.asarray(forward(one, jnp.asarray(setting.held_out[:, :-1]), MODEL), np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        order = np.argsort(-logits, axis=-1)
        right = setting.held_out[:, 1:]
        p_right = np.take_along_axis(p, right[..., None], -1)[..., 0]
        rank = 1 + np.argmax(order == right[..., None], axis=-1)
        for i in range(2):
            here = labels[:, 1:] == i + 1
            np.testing.assert_allclose(found["label_loss"][s, i], -np.log(p_right[here]).mean(), rtol=1e-5)
            np.testing.assert_allclose(found["label_prob"][s, i], p_right[here].mean(), rtol=1e-5)
            np.testing.assert_allclose(found["label_top1"][s, i], (rank[here] == 1).mean(), rtol=1e-6)
            np.testing.assert_allclose(found["label_rank"][s, i], rank[here].mean(), rtol=1e-6)
        rows, positions = setting.labelled
        np.testing.assert_allclose(found["labelled_prob"][s], p_right[rows, positions], rtol=1e-5)
        np.testing.assert_array_equal(found["labelled_rank"][s], rank[rows, positions])
        assert np.isnan(found["label_loss"][s, 2])
    assert sorted(labels[:, 1:][setting.labelled]) == sorted(labels[:, 1:][labels[:, 1:] > 0])


def test_equal_logits_share_their_ranks() -> None:
    params = {name: jnp.zeros_like(value) for name, value in random_params(MODEL).items()}
    loss, rank = predictions(params, context(MODEL).held_out, MODEL)
    np.testing.assert_allclose(loss, np.log(11), rtol=1e-6)
    np.testing.assert_allclose(rank, (1 + 11) / 2)


def test_an_induction_model_knows_what_is_said_again_and_nothing_else() -> None:
    params, config = induction_model(n_ctx=40)
    block = np.random.default_rng(0).permutation(np.arange(1, config.vocab_size))[:20]
    rows = np.concatenate([[0], block, block])[None].astype(np.int32)
    labels = np.repeat(np.array([0, 2, 0, 1], np.uint8), [1, 20, 1, 19])[None]
    setting = _labelled(context(config), labels)
    setting = dataclasses.replace(setting, held_out=rows)
    found = MEASUREMENT.measure(setting, {name: np.asarray(value)[None] for name, value in params.items()})
    assert found["label_prob"][0, 0] > 0.999
    assert found["label_top1"][0, 0] == 1
    assert found["label_prob"][0, 1] < 0.05


def test_a_corpus_without_labels_says_so() -> None:
    assert "label" in (MEASUREMENT.why_not(context(MODEL)) or "")
    labels = np.zeros((6, MODEL.n_ctx + 1), np.uint8)
    assert MEASUREMENT.why_not(_labelled(context(MODEL), labels)) is None
