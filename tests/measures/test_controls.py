"""Controls that are measured: rows in random order, and sets of heads."""

import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.measures import shuffled_context
from icl_jax.measures.ablation import ablate, ablate_sets, matched_sets
from icl_jax.measures.held_out_loss import held_out_loss
from icl_jax.measures.pca import pca
from tests.analysis.small_runs import random_rows
from tests.hand_built import induction_model, repeated_rows
from tests.model.random_params import random_params

CONFIG = ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=41, vocab_size=29)


def test_shuffled_rows_have_the_same_tokens_and_nothing_to_learn_from() -> None:
    params, config = induction_model()
    rows = repeated_rows()
    rows = np.concatenate([rows, rows[:, 1:2]], axis=1)
    mixed = shuffled_context.shuffled(rows, seed=5)
    np.testing.assert_array_equal(mixed[:, 0], rows[:, 0])
    np.testing.assert_array_equal(np.sort(mixed), np.sort(rows))
    assert len({tuple(np.argsort(row, kind="stable")) for row in mixed}) == len(mixed)
    late = np.s_[:, 60:]
    assert np.asarray(held_out_loss(params, rows, config))[late].mean() < 0.01
    assert np.asarray(held_out_loss(params, mixed, config))[late].mean() > 3


def test_a_set_of_one_head_is_that_head_and_matched_heads_are_others_of_its_layer() -> None:
    params, rows = random_params(CONFIG), random_rows(CONFIG, 3)
    sets = np.zeros((3, 2, 3), bool)
    sets[0, 0, 1] = sets[1, 1, 2] = True
    ablated = ablate_sets(params, rows, CONFIG, sets, "pattern_preserving")
    one = ablate(params, rows, CONFIG)
    np.testing.assert_allclose(ablated[0], one["pattern_preserving"][0, 1], atol=2e-5)
    np.testing.assert_allclose(ablated[1], one["pattern_preserving"][1, 2], atol=2e-5)
    np.testing.assert_allclose(ablated[2], one["intact"], atol=2e-5)
    chosen = np.array([[True, False, False], [True, True, False]])
    order = np.array([[[0.1, 0.9, 0.5], [0.5, 0.1, 0.2]]])
    matched = matched_sets(jnp.asarray(chosen), jnp.asarray(order))
    assert np.asarray(matched).tolist() == [[[False, False, True], [False, False, True]]]


def test_components_are_those_of_the_singular_value_decomposition() -> None:
    some = np.random.default_rng(0).normal(size=(2, 7, 40))
    found = pca(list(some), n_components=3)
    stacked = some.reshape(14, 40) - some.reshape(14, 40).mean(axis=0)
    left, singular, right = np.linalg.svd(stacked, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.concatenate(found.scores)), np.abs((left * singular)[:, :3]), atol=1e-9)
    np.testing.assert_allclose(np.abs(found.directions), np.abs(right[:3]), atol=1e-9)
    np.testing.assert_allclose(found.explained, singular[:3] ** 2 / (singular**2).sum(), atol=1e-12)
