"""The split by bigrams that stood before in the row, and the sets of heads that are taken away together."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.measures import seen_bigrams
from icl_jax.measures.seen_bigrams import choose_sets, n_in_set
from icl_jax.model.loss import losses
from tests.analysis.random_snapshots import check, context, stacked
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=3, d_model=16, n_heads=4, n_ctx=17, vocab_size=5, d_mlp=6, positions="rotary")


def test_sets_are_the_highest_heads_and_as_many_others_of_their_layers() -> None:
    score = np.full((5, 6), 0.1, np.float32)
    score[1, 2], score[3, 0], score[3, 5] = 0.9, 0.8, 0.7
    score[3, 1] = 0.6  # not among the three highest, and no control
    assert n_in_set(5, 6) == 3
    random = np.random.default_rng(0).random((40, 5, 6), np.float32)
    induction, others = (np.asarray(of) for of in choose_sets(jnp.asarray(score), jnp.asarray(random)))
    assert np.argwhere(induction).tolist() == [[1, 2], [3, 0], [3, 5]]
    assert np.all(others.sum(axis=-1) == [0, 1, 0, 2, 0])
    assert not np.any(others & induction)
    assert not np.any(others[:, 3, 1])
    assert np.all(others.any(axis=0)[1] == [True, True, False, True, True, True])
    assert len({tuple(map(tuple, np.argwhere(draw))) for draw in others}) > 3


def test_a_layer_without_enough_others_gives_those_it_has() -> None:
    induction, others = choose_sets(jnp.ones((9, 1)), jnp.zeros((2, 9, 1)))
    assert int(np.sum(induction)) == 1
    assert not np.any(others)
    assert (n_in_set(1, 1), n_in_set(30, 9)) == (1, 10)


def test_losses_are_those_of_the_model_without_the_heads_in_a_plain_loop() -> None:
    params, setting = stacked(MODEL, 2), context(MODEL)
    found = check(seen_bigrams.MEASUREMENT, MODEL, params)
    rows = setting.held_out
    is_seen = np.zeros((len(rows), MODEL.n_ctx), bool)
    for b, row in enumerate(rows.tolist()):
        pairs = list(itertools.pairwise(row))
        is_seen[b] = [pair in pairs[:t] for t, pair in enumerate(pairs)]
    assert found["seen_bigram_share"][0] == np.float32(is_seen.mean())
    assert 0.1 < is_seen.mean() < 0.9
    one = random_params(MODEL)
    heads = np.argwhere(found["in_induction_set"][0])
    assert len(heads) == 1
    ((layer, head),) = heads
    W_O = np.array(one["W_O"])
    W_O[layer, head] = 0
    without = np.asarray(jax.jit(lambda params: losses(params, jnp.asarray(rows), MODEL))({**one, "W_O": W_O}))
    np.testing.assert_allclose(found["set_seen_bigram_loss"][0, 1], without[is_seen].mean(), rtol=1e-5)
    np.testing.assert_allclose(found["set_new_bigram_loss"][0, 1], without[~is_seen].mean(), rtol=1e-5)
    assert abs(found["set_seen_bigram_loss"][0, 0] - found["set_seen_bigram_loss"][0, 1]) > 1e-3
    np.testing.assert_allclose(found["in_same_layers_set"][0].sum(axis=-1), found["in_induction_set"][0].sum(axis=-1))
