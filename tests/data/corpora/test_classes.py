"""Rows of the classes corpus against their definition."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.data.corpora.classes import ClassesCorpus

N_LABELS, N_LETTERS, N_CLASSES, N_CONTEXT, BURSTINESS = 5, 11, 40, 6, 3
GIVEN = {
    "source": "classes", "vocab_size": 1 + N_LABELS + N_LETTERS, "n_ctx": 3 * (N_CONTEXT + 1), "n_classes": N_CLASSES,
    "n_labels": N_LABELS, "burstiness": BURSTINESS, "held_out_rows": 600, "seed": 5,
}  # fmt: skip


def corpus_of(make_config: Callable[..., Config], **fields: Any) -> ClassesCorpus:
    return ClassesCorpus(make_config(**(GIVEN | fields)))


def read(row: np.ndarray) -> list[tuple[tuple[int, int], int]]:
    """A row as (item, label), read token by token."""
    assert row[0] == 0
    items = []
    for at in range(1, len(row), 3):
        first, second, label = (int(token) for token in row[at : at + 3])
        assert min(first, second) > N_LABELS >= label > 0
        items.append(((first, second), label))
    return items


def labels_of_training(corpus: ClassesCorpus) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for row in corpus.rows(np.arange(2000)):
        for item, label in read(row):
            assert found.setdefault(item, label) == label
    return found


def test_training_classes_keep_their_labels(make_config: Callable[..., Config]) -> None:
    found = labels_of_training(corpus_of(make_config))
    assert len(found) == N_CLASSES
    assert set(Counter(found.values()).values()) == {N_CLASSES // N_LABELS}


def test_bursty_rows_repeat_their_classes_and_ask_for_one_of_them(make_config: Callable[..., Config]) -> None:
    orders = set()
    for row in corpus_of(make_config).rows(np.arange(300)):
        *context, target = read(row)
        counts = Counter(item for item, _ in context)
        assert sorted(counts.values()) == [BURSTINESS] * (N_CONTEXT // BURSTINESS)
        assert target in context
        orders.add(tuple(context[0] == each for each in context))
    assert len(orders) == 10  # five places for the other two of the first item's burst: all ten pairs


def test_other_rows_do_not(make_config: Callable[..., Config]) -> None:
    rows = [read(row) for row in corpus_of(make_config, bursty=0.25).rows(np.arange(2000))]
    by_chance = 1 - (1 - 1 / N_CLASSES) ** N_CONTEXT
    seen = np.mean([row[-1] in row[:-1] for row in rows])
    assert seen == pytest.approx(0.25 + 0.75 * by_chance, abs=0.03)


def test_held_out_rows_take_turns(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    known = labels_of_training(corpus)
    rows, labels = corpus.held_out(600), corpus.held_out_labels(600)
    assert (labels[:, :-1] == 0).all()
    np.testing.assert_array_equal(labels[:, -1], 1 + np.arange(600) % 512 % 3)
    answers: list[Counter[int]] = [Counter(), Counter(), Counter()]
    for row, kind in zip(rows, labels[:, -1] - 1, strict=True):
        *context, (target, answer) = read(row)
        answers[kind][answer] += 1
        if kind == 0:
            assert not any(item in known for item, _ in context)
        if kind == 1:
            assert all(label == known[item] % N_LABELS + 1 for item, label in context)
        if kind < 2:
            assert dict(context)[target] == answer
            assert len(dict(context)) == N_CONTEXT // BURSTINESS
        else:
            assert len({item for item, _ in context} | {target}) == N_CONTEXT + 1
            assert all(known[item] == label for item, label in (*context, (target, answer)))
    for counts in answers:  # no label is the answer of more than its share
        assert max(counts.values()) < 1.7 * sum(counts.values()) / N_LABELS


def test_rows_are_a_function_of_seed_and_number(make_config: Callable[..., Config]) -> None:
    a, b, other = (corpus_of(make_config, seed=seed) for seed in (5, 5, 6))
    ids = np.array([700, 3, 3, 511])
    np.testing.assert_array_equal(a.rows(ids), b.rows(np.arange(701))[ids])
    assert a.fingerprint == b.fingerprint != other.fingerprint
    assert not np.array_equal(a.rows(ids), other.rows(ids))
    assert a.fingerprint != corpus_of(make_config, bursty=0.5).fingerprint
    assert isinstance(open_corpus(make_config(**GIVEN)), ClassesCorpus)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_ctx": 20}, "model.n_ctx = 20: must be 3 [+] 3 x a multiple of data.classes.burstiness = 3"),
        ({"n_ctx": 15}, "model.n_ctx = 15: must be"),
        ({"n_ctx": 3}, "model.n_ctx = 3: must be"),
        ({"n_classes": 6}, "data.classes.n_classes = 6: must be 7 or more"),
        ({"vocab_size": 12}, "model.vocab_size = 12: must leave letters for 47 pairs"),
        ({"vocab_size": 1 + N_LABELS + 4097}, "model.vocab_size = 4103: must be at most 4102"),
        ({"vocab_size": 4}, "model.vocab_size = 4: must leave letters for 47 pairs"),
    ],
)
def test_sizes_that_make_no_rows(make_config: Callable[..., Config], fields: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus_of(make_config, **fields)
