"""Behaviours without the heads that copy new names: against the model without them in a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.measures import label_matching
from icl_jax.measures.label_ablation import MEASUREMENT
from icl_jax.model.loss import losses
from tests.analysis.random_snapshots import context, stacked

MODEL = ModelConfig(n_layers=2, d_model=12, n_heads=4, n_ctx=13, vocab_size=5)


def test_probabilities_are_those_of_the_model_without_the_heads() -> None:
    setting = context(MODEL, 8)
    labels = np.random.default_rng(5).integers(0, 3, setting.held_out.shape).astype(np.uint8)
    setting = dataclasses.replace(setting, label_names=("other", "novel_name", "never"), labels=labels)
    params = stacked(MODEL, 2)
    found = MEASUREMENT.measure(setting, params)
    matching = label_matching.MEASUREMENT.measure(setting, params)["label_matching"][:, 1]
    run = jax.jit(lambda params: losses(params, jnp.asarray(setting.held_out), MODEL))
    for s in range(2):
        (chosen,) = np.argwhere(found["in_copying_set"][s]).tolist()
        assert chosen == list(np.unravel_index(matching[s].argmax(), matching[s].shape))
        layer, head = chosen

        def by_label(*without: int, s: int = s, layer: int = layer) -> np.ndarray:
            W_O = params["W_O"][s].copy()
            W_O[layer, list(without)] = 0
            prob = np.exp(-np.asarray(run({n: v[s] for n, v in params.items()} | {"W_O": W_O})))
            return np.array([prob[labels[:, 1:] == number].mean() for number in (1, 2)])

        np.testing.assert_allclose(found["ablated_label_prob"][s, 0, :2], by_label(), rtol=1e-5)
        np.testing.assert_allclose(found["ablated_label_prob"][s, 1, :2], by_label(head), rtol=1e-5)
        others = np.stack([by_label(other) for other in range(4) if other != head])
        mean = found["ablated_label_prob"][s, 2, :2]
        assert (mean >= others.min(0) - 1e-6).all()
        assert (mean <= others.max(0) + 1e-6).all()
        assert abs(mean - found["ablated_label_prob"][s, 1, :2]).max() > 1e-4
    assert np.isnan(found["ablated_label_prob"][:, :, 2]).all(), "a label without a token"


def test_where_it_is_undefined() -> None:
    assert "no new names" in (MEASUREMENT.why_not(context(MODEL)) or "")
