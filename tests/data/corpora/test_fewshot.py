"""Rows of the fewshot corpus against their definition."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from icl_jax.config import Config, UserError
from icl_jax.data.corpora.fewshot import FewshotCorpus

N_PAIRS, N_LABELS, N_ITEMS = 3, 5, 11
GIVEN = {
    "source": "fewshot", "vocab_size": 1 + N_LABELS + N_ITEMS, "n_ctx": 2 + 2 * N_PAIRS,
    "n_labels": N_LABELS, "held_out_rows": 600, "seed": 5,
}  # fmt: skip


def corpus_of(make_config: Callable[..., Config], **fields: Any) -> FewshotCorpus:
    return FewshotCorpus(make_config(**(GIVEN | fields)))


def test_the_context_alone_tells_the_label_that_is_asked_for(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    rows, n = corpus.rows(np.arange(3000)), 3000
    pairs, asked, labels_of = Counter[tuple[int, int]](), Counter[int](), Counter[tuple[int, int]]()
    for row in rows.tolist():
        bos, *context, item, label = row
        assert bos == 0
        items, labels = context[::2], context[1::2]
        assert len(set(items)) == len(set(labels)) == N_PAIRS
        assert min(items) > N_LABELS >= max(labels) >= min(labels) > 0
        assert labels[items.index(item)] == label
        asked[items.index(item)] += 1
        labels_of[item, label] += 1
        pairs.update(zip(items, labels, strict=True))
    # Every place is asked for, and every item has every label, as often as any other: four standard errors.
    for counts, n_kinds in ((asked, N_PAIRS), (labels_of, N_ITEMS * N_LABELS), (pairs, N_ITEMS * N_LABELS)):
        expected = sum(counts.values()) / n_kinds
        assert len(counts) == n_kinds
        assert max(abs(count - expected) for count in counts.values()) < 4 * np.sqrt(expected)
    assert sum(asked.values()) == n


def test_held_out_rows_are_others_and_their_last_token_is_labelled(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    labels = corpus.held_out_labels(600)
    assert corpus.label_names == ("query",)
    assert (labels[:, -1] == 1).all()
    assert (labels[:, :-1] == 0).all()
    assert not np.array_equal(corpus.held_out(600), corpus.rows(np.arange(600)))
    others = {corpus_of(make_config, **other).fingerprint for other in ({"seed": 6}, {"n_labels": 4}, {})}
    assert len(others) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_ctx": 7}, "model.n_ctx = 7: must be even and 4 or more"),
        ({"n_ctx": 2}, "model.n_ctx = 2: must be even and 4 or more"),
        ({"n_labels": 2}, "data.fewshot.n_labels = 2: must be 3 or more with model.n_ctx = 8"),
        ({"n_labels": 0}, "data.fewshot.n_labels = 0: must be 1 or more"),
        ({"vocab_size": 8}, "model.vocab_size = 8: must be 9 or more"),
    ],
)
def test_sizes_that_make_no_rows(make_config: Callable[..., Config], fields: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus_of(make_config, **fields)
