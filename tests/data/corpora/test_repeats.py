"""Rows of the repeats corpus against their definition."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.data import open_corpus
from icl_jax.data.corpora.generated import BLOCK_ROWS
from icl_jax.data.corpora.repeats import RepeatsCorpus, bigram_chain, successor_ranks
from icl_jax.data.probe_tokens import eligible_tokens

V, T, LENGTH, N_PHRASES, PROB = 13, 61, 5, 3, 0.2


@pytest.fixture(scope="module")
def corpus(make_config: Callable[..., Config]) -> RepeatsCorpus:
    config = make_config(vocab_size=V, n_ctx=T, phrase_len=LENGTH, n_phrases=N_PHRASES, phrase_prob=PROB, seed=5)
    return RepeatsCorpus(config)


def layout(corpus: RepeatsCorpus, ids: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows, where phrases start and where the chain goes on; the last column is left out: its kind cannot be told."""
    rows, later = corpus.rows(ids), corpus.row_labels(ids) > 0
    is_start = ~later[:, :-1] & later[:, 1:]
    is_free = ~later[:, :-1] & ~later[:, 1:]
    is_start[:, 0] = is_free[:, 0] = False
    return rows[:, :-1], is_start, is_free


@settings(max_examples=25)
@given(ids=st.lists(st.integers(0, 3 * BLOCK_ROWS), max_size=9))
def test_a_row_depends_on_its_id_alone(
    corpus: RepeatsCorpus, make_config: Callable[..., Config], ids: list[int]
) -> None:
    rows = corpus.rows(np.array(ids, np.int64))
    assert rows.shape == (len(ids), T + 1)
    assert rows.dtype == np.int32
    for i, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(corpus.rows(np.array([i]))[0], row)
    config = make_config(vocab_size=V, n_ctx=T, phrase_len=LENGTH, n_phrases=N_PHRASES, phrase_prob=PROB, seed=5)
    np.testing.assert_array_equal(RepeatsCorpus(config).rows(np.array(ids[:1], np.int64)), rows[:1])


def test_known_rows(make_config: Callable[..., Config]) -> None:
    """A change here makes runs in progress unresumable: raise VERSION with it."""
    corpus = open_corpus(make_config(vocab_size=64, n_ctx=128))
    assert corpus.rows(np.array([999]))[0, :12].tolist() == [0, 31, 52, 22, 43, 47, 60, 26, 28, 44, 61, 22]


def test_rows_start_with_bos_and_hold_no_other(corpus: RepeatsCorpus) -> None:
    rows = np.concatenate([corpus.rows(np.arange(700)), corpus.held_out(11)])
    assert (rows[:, 0] == corpus.bos_id).all()
    assert rows[:, 1:].min() == 1
    assert rows[:, 1:].max() == V - 1


def test_held_out_rows_are_no_training_rows(corpus: RepeatsCorpus) -> None:
    training = {row.tobytes() for row in corpus.rows(np.arange(4 * BLOCK_ROWS))}
    held_out = {row.tobytes() for row in corpus.held_out(11)}
    assert len(training) == 4 * BLOCK_ROWS
    assert len(held_out) == 11
    assert not training & held_out
    np.testing.assert_array_equal(corpus.held_out(4), corpus.held_out(11)[:4])


def test_free_tokens_follow_the_chain(corpus: RepeatsCorpus) -> None:
    rows, _, is_free = layout(corpus, np.arange(4 * BLOCK_ROWS))
    row, t = np.nonzero(is_free)
    chain = bigram_chain(5, V)
    assert (np.sort(chain, axis=1) == np.arange(1, V)).all()
    assert len({successors.tobytes() for successors in chain}) == V
    rank_of = np.argsort(chain, axis=1)
    before, rank = rows[row, t - 1], rank_of[rows[row, t - 1], rows[row, t] - 1]
    expected = 1 / np.arange(1, V) / (1 / np.arange(1, V)).sum()
    for token in range(V):
        n = (before == token).sum()
        frequency = np.bincount(rank[before == token], minlength=V - 1) / n
        np.testing.assert_allclose(frequency, expected, atol=4.5 * np.sqrt(0.25 / n))


def test_phrases_start_at_the_given_rate_and_are_equally_likely(corpus: RepeatsCorpus) -> None:
    rows, is_start, is_free = layout(corpus, np.arange(4 * BLOCK_ROWS))
    n_starts, n_free = is_start.sum(), is_free.sum()
    rate = n_starts / (n_starts + n_free)
    assert rate == pytest.approx(PROB, abs=4 * np.sqrt(PROB * (1 - PROB) / (n_starts + n_free)))
    # Two starts of a row say the same phrase with chance 1/3, but for phrases that are alike by accident.
    row, t = np.nonzero(is_start[:, : T - LENGTH + 1])
    phrases = rows[row[:, None], t[:, None] + np.arange(LENGTH)]
    same = [(phrases[i] == phrases[i + 1]).all() for i in np.flatnonzero(row[:-1] == row[1:])]
    assert np.mean(same) == pytest.approx(1 / N_PHRASES, abs=4 * np.sqrt(0.25 / len(same)))


def test_a_row_says_its_own_few_phrases_again_and_again(corpus: RepeatsCorpus) -> None:
    rows, is_start, _ = layout(corpus, np.arange(2 * BLOCK_ROWS))
    is_start[:, T - LENGTH + 1 :] = False  # cut off by the end of the row
    owners: dict[bytes, set[int]] = {}
    n_copies = []
    for r, (row, starts) in enumerate(zip(rows, is_start, strict=True)):
        said = [row[t : t + LENGTH].tobytes() for t in np.flatnonzero(starts)]
        assert len(set(said)) <= N_PHRASES
        n_copies.append(len(said) - len(set(said)))
        for phrase in said:
            owners.setdefault(phrase, set()).add(r)
    assert np.mean(n_copies) > 3
    shared = sum(len(rows_of) > 1 for rows_of in owners.values())
    n_pairs = len(owners) ** 2 / 2
    assert shared <= 3 * n_pairs / (V - 1) ** LENGTH + 5  # as many as accident allows
    first_tokens = np.bincount([np.frombuffer(phrase, np.int32)[0] for phrase in owners], minlength=V)[1:]
    np.testing.assert_allclose(first_tokens / len(owners), 1 / (V - 1), atol=4 * np.sqrt(0.08 / len(owners)))


def test_phrases_run_to_their_end(corpus: RepeatsCorpus) -> None:
    _, is_start, _ = layout(corpus, np.arange(300))
    later = corpus.row_labels(np.arange(300)) > 0
    for offset in range(1, LENGTH):
        assert later[:, offset:][is_start[:, : T + 1 - offset]].all()
    lengths = later.sum(axis=1) - (LENGTH - 1) * is_start[:, : T - LENGTH + 2].sum(axis=1)
    assert (lengths >= 0).all()
    assert (lengths < LENGTH).all()


def test_labels_tell_first_sayings_from_later_ones(corpus: RepeatsCorpus) -> None:
    assert corpus.label_names == ("phrase_new", "phrase_again")
    ids = np.arange(400)
    rows, labels = corpus.rows(ids), corpus.row_labels(ids)
    _, is_start, _ = layout(corpus, ids)
    for row, starts, label in zip(rows, is_start, labels, strict=True):
        said: set[bytes] = set()
        for t in np.flatnonzero(starts):
            inside = label[t + 1 : t + LENGTH]
            assert label[t] == 0
            if len(inside) < LENGTH - 1:
                continue  # cut off by the end of the row
            phrase = row[t : t + LENGTH].tobytes()
            assert inside.tolist() == [2 if phrase in said else 1] * (LENGTH - 1)
            said.add(phrase)
    held_out = corpus.held_out_labels(11)
    assert held_out.shape == (11, T + 1)
    assert held_out.dtype == np.uint8
    assert set(np.unique(held_out)) == {0, 1, 2}
    with pytest.raises(IndexError, match="there are 11"):
        corpus.held_out_labels(12)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"n_ctx": 20},
        {"vocab_size": 299},
        {"phrase_len": 9},
        {"n_phrases": 3},
        {"phrase_prob": 0.21},
        {"held_out_rows": 12},
    ],
)
def test_the_fingerprint_tells_configs_apart(make_config: Callable[..., Config], change: dict[str, Any]) -> None:
    plain = open_corpus(make_config()).fingerprint
    assert len(plain) == 64
    assert open_corpus(make_config()).fingerprint == plain
    assert open_corpus(make_config(**change)).fingerprint != plain


def test_a_large_vocabulary_keeps_a_bounded_table() -> None:
    vocab_size = 4100
    ranks = successor_ranks(vocab_size)
    assert ranks.sum() == pytest.approx(1)
    assert len(ranks) == 2**24 // vocab_size < vocab_size - 1
    chain = bigram_chain(0, vocab_size)
    assert chain.shape == (vocab_size, len(ranks))
    assert chain.min() == 1
    assert chain.max() == vocab_size - 1
    assert all(len(set(row)) == len(ranks) for row in chain[:5].tolist())


def test_ids_out_of_range_are_refused(corpus: RepeatsCorpus) -> None:
    with pytest.raises(IndexError, match="0 or more"):
        corpus.rows(np.array([-1]))
    for n in (-1, 12):
        with pytest.raises(IndexError, match="there are 11"):
            corpus.held_out(n)


def test_tokens_show_as_numbers(corpus: RepeatsCorpus) -> None:
    assert corpus.decode(np.array([0, 12])) == ["0", "12"]
    assert corpus.n_rows is None
    assert corpus.tokenizer_json is None


def test_probe_tokens_leave_out_the_most_and_least_common(make_config: Callable[..., Config]) -> None:
    corpus = open_corpus(make_config(vocab_size=64, n_ctx=128))
    tokens = corpus.probe_tokens()
    assert len(tokens) == 57  # 63 but 3 at each end
    counts = np.bincount(corpus.rows(np.arange(4 * BLOCK_ROWS)).reshape(-1))
    left_out = np.setdiff1d(np.arange(1, 64), tokens)
    assert ((counts[left_out] >= counts[tokens].max()) | (counts[left_out] <= counts[tokens].min())).all()


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=80))
def test_eligible_tokens_were_seen_and_are_sorted(counts: list[int]) -> None:
    counts_V = np.array(counts, np.int64)
    tokens = eligible_tokens(counts_V, bos_id=0)
    n_seen = int((counts_V[1:] > 0).sum())
    assert len(tokens) == n_seen - 2 * round(0.05 * n_seen)
    assert (np.diff(tokens) > 0).all()
    assert (counts_V[tokens] > 0).all()
    assert 0 not in tokens
