"""Rows of the patterns corpus against their definition, read back as lines of words."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer

from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.data.corpora.generated import BLOCK_ROWS
from icl_jax.data.corpora.patterns import CLASSES, LABELS, VOCABULARY, PatternsCorpus

T = 53
N_VOCABULARY = 62  # BOS, line end, twelve labels, 4 x 12 words


@pytest.fixture(scope="module")
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(source="patterns", vocab_size=64, n_ctx=T, held_out_rows=300, seed=5)


@pytest.fixture(scope="module")
def corpus(config: Config) -> PatternsCorpus:
    return PatternsCorpus(config)


def lines_of(row: NDArray[np.int32]) -> list[tuple[str, str, str]]:
    """First word, second word and label of each whole line of a row."""
    words = [VOCABULARY[i] for i in row[1:]]
    whole = [words[i : i + 4] for i in range(0, len(words) - 3, 4)]
    assert all(line[3] == "\n" for line in whole)
    return [(line[0], line[1], line[2]) for line in whole]


def class_of(word: str) -> int:
    (found,) = [i for i, words in enumerate(CLASSES) if word in words]
    return found


def test_words_are_of_one_class_and_the_vocabulary_of_words() -> None:
    words = [word for words in CLASSES for word in words]
    assert len(set(VOCABULARY)) == len(VOCABULARY) == N_VOCABULARY
    assert sorted(VOCABULARY[14:]) == sorted(words)


def test_every_row_has_one_rule_and_rows_have_many(corpus: PatternsCorpus) -> None:
    deals, label_sets = set(), set()
    n_again = 0
    for row in corpus.rows(np.arange(400)):
        lines = lines_of(row)
        rule: dict[tuple[int, int], str] = {}
        for first, second, label in lines:
            assert rule.setdefault((class_of(first), class_of(second)), label) == label
        assert len(set(rule.values())) == len(rule)  # no two pairs share a label
        firsts, seconds = ({pair[i] for pair in rule} for i in (0, 1))
        assert not firsts & seconds
        assert max(len(firsts), len(seconds)) <= 2
        if len(rule) == 4:
            deals.add((frozenset(firsts), frozenset(seconds)))
            label_sets.add(tuple(rule[pair] for pair in sorted(rule)))
        # 13 lines drawn one by one are hardly ever as few as 6.
        n_again += len(set(lines)) <= 6
    assert len(deals) == 6  # which two of four classes come first
    assert len(label_sets) > 100
    assert n_again == pytest.approx(200, abs=40)


def test_pairs_labels_and_words_are_equally_likely(corpus: PatternsCorpus) -> None:
    rows = corpus.rows(np.arange(4 * BLOCK_ROWS))
    tokens = rows[:, 1:49].reshape(len(rows), 12, 4)
    for place, ids in ((2, range(2, 14)), (0, range(14, 62)), (1, range(14, 62))):
        found = np.bincount(tokens[..., place].reshape(-1), minlength=len(VOCABULARY))
        assert found.sum() == found[list(ids)].sum()
        # Lines of a row share its draws, so rows count, not lines.
        np.testing.assert_allclose(
            found[list(ids)] / found.sum(), 1 / len(ids), atol=4 * np.sqrt(1 / len(ids) / len(rows))
        )
    all_lines = [lines_of(row) for row in rows]
    drawn = [lines for lines in all_lines if len(set(lines)) > 6]  # the others say lines again
    same = np.mean([lines[0][2] == lines[1][2] for lines in drawn])
    assert same == pytest.approx(1 / 4, abs=4 * np.sqrt(3 / 16 / len(drawn)))


def test_labels_tell_what_a_row_has_shown(corpus: PatternsCorpus) -> None:
    rows, shown, pairs = corpus.held_out(300), corpus.held_out_labels(300), corpus.held_out_hidden(300)
    assert shown.dtype == np.uint8
    assert corpus.label_names == ("class_new", "class_seen", "words_seen", "class_known")
    at = np.arange(3, T + 1, 4)
    np.testing.assert_array_equal(np.delete(shown, at, axis=1), 0)
    known: dict[tuple[int, int], str] = {}
    n_known = 0
    for row, marks, pair_of_line in zip(rows, shown[:, at], pairs, strict=True):
        assert len({(line[2], pair) for line, pair in zip(lines_of(row), pair_of_line, strict=False)}) <= 4
        if marks[0] == 4:
            assert (marks == 4).all()
            for first, second, label in lines_of(row):
                assert known.setdefault((class_of(first), class_of(second)), label) == label
            n_known += 1
            continue
        labels: set[str] = set()
        words: set[tuple[str, str]] = set()
        for (first, second, label), mark in zip(lines_of(row), marks, strict=False):
            assert mark == (1 if label not in labels else 3 if (first, second) in words else 2)
            labels.add(label)
            words.add((first, second))
    assert n_known == pytest.approx(75, abs=4 * np.sqrt(300 * 3 / 16))
    assert len(known) == len(set(known.values())) == 12  # each pair of classes has a label of its own
    assert (np.bincount(shown.reshape(-1))[1:] > 200).all()


@settings(max_examples=25)
@given(ids=st.lists(st.integers(0, 3 * BLOCK_ROWS), max_size=9))
def test_a_row_depends_on_its_id_alone(corpus: PatternsCorpus, config: Config, ids: list[int]) -> None:
    rows = corpus.rows(np.array(ids, np.int64))
    assert rows.shape == (len(ids), T + 1)
    assert rows.dtype == np.int32
    for i, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(corpus.rows(np.array([i]))[0], row)
    np.testing.assert_array_equal(PatternsCorpus(config).rows(np.array(ids[:1], np.int64)), rows[:1])


def test_held_out_rows_are_no_training_rows(corpus: PatternsCorpus) -> None:
    training = {row.tobytes() for row in corpus.rows(np.arange(4 * BLOCK_ROWS))}
    held_out = {row.tobytes() for row in corpus.held_out(300)}
    assert len(training) == 4 * BLOCK_ROWS
    assert len(held_out) == 300
    assert not training & held_out
    np.testing.assert_array_equal(corpus.held_out(4), corpus.held_out(300)[:4])


def test_known_row(config: Config) -> None:
    """A change here makes runs in progress unresumable: raise VERSION with it."""
    row = open_corpus(config).rows(np.array([999]))[0]
    assert lines_of(row)[:3] == [
        ("november", "violet", ": 0"),
        ("november", "snake", ": 1"),
        ("strawberry", "mouse", ": 11"),
    ]


def test_the_tokenizer_reads_lines_as_they_are_written(corpus: PatternsCorpus) -> None:
    tokenizer = Tokenizer.from_str(corpus.tokenizer_json)
    row = corpus.rows(np.array([3]))[0]
    text = "".join(f"{first} {second}{label}\n" for first, second, label in lines_of(row))
    assert tokenizer.encode(text).ids == row[1 : 1 + 4 * (T // 4)].tolist()
    assert corpus.decode([0, 1, 2, 14]) == ["<|bos|>", "\\n", LABELS[0], CLASSES[0][0]]


@pytest.mark.parametrize("change", [{"seed": 1}, {"n_ctx": 20}, {"held_out_rows": 12}])
def test_the_fingerprint_tells_configs_apart(make_config: Callable[..., Config], change: dict[str, Any]) -> None:
    same = {"source": "patterns", "vocab_size": 64}
    plain = open_corpus(make_config(**same)).fingerprint
    assert len(plain) == 64
    assert open_corpus(make_config(**same)).fingerprint == plain
    assert open_corpus(make_config(**same, **change)).fingerprint != plain


def test_probe_tokens_leave_out_what_is_in_every_line(corpus: PatternsCorpus) -> None:
    tokens = corpus.probe_tokens()
    assert len(tokens) == N_VOCABULARY - 1 - 2 * 3
    assert not set(tokens.tolist()) & {0, 1}


def test_what_is_refused(corpus: PatternsCorpus, make_config: Callable[..., Config]) -> None:
    with pytest.raises(IndexError, match="0 or more"):
        corpus.rows(np.array([-1]))
    for n in (-1, 301):
        with pytest.raises(IndexError, match="there are 300"):
            corpus.held_out(n)
    with pytest.raises(UserError, match=r"model\.vocab_size = 61: must be 62 or more for data\.source = 'patterns'"):
        open_corpus(make_config(source="patterns", vocab_size=61))
