"""Rows of the markov corpus against the chains that they were drawn from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from icl_jax.config import Config
from icl_jax.data import open_corpus
from icl_jax.data.corpora.generated import BLOCK_ROWS
from icl_jax.data.corpora.markov import MarkovCorpus, draw_chains

K, T = 3, 37


def corpus_of(make_config: Callable[..., Config], **fields: Any) -> MarkovCorpus:
    return MarkovCorpus(make_config(**({"source": "markov", "vocab_size": K + 1, "n_ctx": T, "seed": 5} | fields)))


def test_a_row_depends_on_its_id_alone(make_config: Callable[..., Config]) -> None:
    ids = np.array([1300, 3, 511, 512, 3])
    rows = corpus_of(make_config).rows(ids)
    assert rows.shape == (5, T + 1)
    assert rows.dtype == np.int32
    for i, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(corpus_of(make_config).rows(np.array([i]))[0], row)
    assert corpus_of(make_config).rows(np.zeros(0, np.int64)).shape == (0, T + 1)


def test_known_rows(make_config: Callable[..., Config]) -> None:
    """A change here makes runs in progress unresumable: raise VERSION with it."""
    row = open_corpus(make_config(source="markov", vocab_size=4, n_ctx=101)).rows(np.array([999]))[0, :12]
    assert row.tolist() == [0, 2, 1, 1, 2, 1, 2, 2, 1, 2, 2, 2]


def test_rows_are_bos_and_states(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    rows = np.concatenate([corpus.rows(np.arange(700)), corpus.held_out(11)])
    assert (rows[:, 0] == corpus.bos_id).all()
    assert set(np.unique(rows[:, 1:])) == {1, 2, 3}
    assert corpus.probe_tokens().tolist() == [1, 2, 3]
    assert corpus.label_names == ()
    assert corpus.n_rows is None
    assert corpus.tokenizer_json is None
    assert corpus.decode(np.array([0, 3])) == ["0", "3"]


def test_held_out_rows_are_no_training_rows(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    training = {row.tobytes() for row in corpus.rows(np.arange(4 * BLOCK_ROWS))}
    assert not training & {row.tobytes() for row in corpus.held_out(11)}
    np.testing.assert_array_equal(corpus.held_out(4), corpus.held_out(11)[:4])
    for n in (-1, 12):
        with pytest.raises(IndexError, match="there are 11"):
            corpus.held_out(n)
    with pytest.raises(IndexError, match="0 or more"):
        corpus.rows(np.array([-1]))


@pytest.mark.parametrize(("order", "n_states"), [(1, 3), (2, 3), (3, 2)])
def test_each_row_follows_its_own_chain(make_config: Callable[..., Config], order: int, n_states: int) -> None:
    n = 512
    corpus = corpus_of(make_config, vocab_size=n_states + 1, order=order, held_out_rows=n)
    states, chains = corpus.held_out(n)[:, 1:] - 1, corpus.held_out_chains(n)
    assert chains.shape == (n, n_states**order, n_states)
    np.testing.assert_allclose(chains.sum(axis=2), 1)
    # The chance of each next state, read off the row's table digit by digit, against how often it comes.
    chance, happened = [], []
    for row, chain in zip(states.tolist(), chains, strict=True):
        for t in range(order, T):
            table = chain.reshape((n_states,) * (order + 1))
            chance.append(table[tuple(row[t - order : t])])
            happened.append(np.eye(n_states)[row[t]])
    chance, happened = np.concatenate(chance), np.concatenate(happened)
    for low in np.arange(0, 1, 0.1):
        here = (chance >= low) & (chance < low + 0.1)
        assert happened[here].mean() == pytest.approx(chance[here].mean(), abs=4.5 * np.sqrt(0.25 / here.sum()))
    first = np.bincount(states[:, :order].reshape(-1)) / states[:, :order].size
    np.testing.assert_allclose(first, 1 / n_states, atol=4 * np.sqrt(0.25 / n))


@pytest.mark.parametrize("prior", ["dirichlet", "unigram", "doubly_stochastic"])
def test_priors(prior: str) -> None:
    chains = draw_chains(np.random.default_rng(3), 20_000, 3, 1, prior)
    assert chains.shape == (20_000, 3, 3)
    np.testing.assert_allclose(chains.sum(axis=2), 1)
    np.testing.assert_allclose(chains.mean(axis=0), 1 / 3, atol=0.01)
    if prior == "doubly_stochastic":
        np.testing.assert_allclose(chains.sum(axis=1), 1, atol=0.05)
        assert np.quantile(np.abs(chains.sum(axis=1) - 1), 0.99) < 1e-3
        return
    # Dirichlet(1, 1, 1): variance 2/36 of an entry, covariance -1/36 within a row.
    assert chains[:, 0, 0].var() == pytest.approx(2 / 36, abs=0.002)
    assert np.cov(chains[:, 0, 0], chains[:, 0, 1])[0, 1] == pytest.approx(-1 / 36, abs=0.002)
    across = np.cov(chains[:, 0, 0], chains[:, 1, 0])[0, 1]
    assert across == pytest.approx(2 / 36 if prior == "unigram" else 0, abs=0.002)


def test_states_are_equally_common_in_doubly_stochastic_chains(make_config: Callable[..., Config]) -> None:
    shares = {}
    for prior in ("dirichlet", "doubly_stochastic"):
        rows = corpus_of(make_config, prior=prior, n_ctx=401).rows(np.arange(512))[:, 1:]
        shares[prior] = np.stack([(rows == state).mean(axis=1) for state in (1, 2, 3)]).std()
    assert shares["doubly_stochastic"] < 0.1 < shares["dirichlet"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"n_ctx": 20},
        {"vocab_size": 6},
        {"order": 2},
        {"prior": "unigram"},
        {"held_out_rows": 9},
    ],
)
def test_the_fingerprint_tells_configs_apart(make_config: Callable[..., Config], change: dict[str, Any]) -> None:
    plain = corpus_of(make_config).fingerprint
    assert len(plain) == 64
    assert corpus_of(make_config).fingerprint == plain
    assert corpus_of(make_config, **change).fingerprint != plain
