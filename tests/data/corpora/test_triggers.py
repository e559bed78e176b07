"""Rows of the triggers corpus against their definition, and the table of characters against its text."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.data.corpora.character_bigrams import (
    count_bigrams,
    load_character_bigrams,
    python_reference,
    save_character_bigrams,
)
from icl_jax.data.corpora.triggers import TriggersCorpus, fixed_triggers

T = 61


def corpus_of(make_config: Callable[..., Config], **fields: Any) -> TriggersCorpus:
    given = {"source": "triggers", "vocab_size": 65, "n_ctx": T, "seed": 5, "n_triggers": 3, "held_out_rows": 600}
    return TriggersCorpus(make_config(**(given | fields)))


def test_counts_by_hand(checkout: Path, tmp_path: Path) -> None:
    table = count_bigrams("ab\n\n a--b", 4)
    assert table.characters == "ab -"  # "ab a-b": of two as common, the lower code point first
    np.testing.assert_array_equal(table.counts, [[0, 1, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(table.unigram, [0.4, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(table.bigram[0], [0, 0.5, 0, 0.5])
    assert count_bigrams("ab c", 2).counts.tolist() == [[0, 0], [1, 0]]  # a, then the space
    save_character_bigrams(load_character_bigrams(), tmp_path / "again.json")
    committed = checkout / "icl_jax" / "data" / "corpora" / "character_bigrams.json"
    assert (tmp_path / "again.json").read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_the_table_is_that_of_the_language_reference() -> None:
    """The reference of this Python, which is another edition of the same text: nearly the same shares."""
    table, mine = load_character_bigrams(), count_bigrams(python_reference())
    assert len(set(table.characters)) == 64
    assert table.counts.shape == (64, 64)
    assert (np.diff(table.counts.sum(axis=1)) <= 0).all()
    assert table.characters[:4] == mine.characters[:4] == " eta"
    number = {character: i for i, character in enumerate(mine.characters)}
    shared = [i for i, character in enumerate(table.characters) if character in number]
    other = [number[table.characters[i]] for i in shared]
    apart = np.abs(table.counts[np.ix_(shared, shared)] / table.counts.sum()
                   - mine.counts[np.ix_(other, other)] / mine.counts.sum()).sum() / 2  # fmt: skip
    assert apart < 0.1
    # Nats; tiny Shakespeare has 3.31 and 2.45.
    unigram, bigram = table.unigram, table.bigram
    assert -np.sum(unigram * np.log(unigram)) == pytest.approx(3.191, abs=1e-3)
    log = np.log(np.where(bigram > 0, bigram, 1))
    assert -np.sum(unigram[:, None] * bigram * log) == pytest.approx(2.499, abs=1e-3)


def test_a_row_depends_on_its_id_alone(make_config: Callable[..., Config]) -> None:
    ids = np.array([1300, 3, 511, 512, 3])
    rows = corpus_of(make_config).rows(ids)
    assert rows.shape == (5, T + 1)
    for i, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(corpus_of(make_config).rows(np.array([i]))[0], row)


def test_known_rows(make_config: Callable[..., Config]) -> None:
    """A change here makes runs in progress unresumable: raise VERSION with it."""
    config = make_config(source="triggers", vocab_size=65, n_ctx=128)
    assert (
        "".join(open_corpus(config).decode(open_corpus(config).rows(np.array([999]))[0, 1:25]))
        == ' +"xc +-iper +-+-avavavo'
    )


@pytest.mark.parametrize("choice", ["fixed", "random"])
def test_triggers_are_followed_by_the_rows_output_and_others_by_the_bigrams(
    make_config: Callable[..., Config], choice: str
) -> None:
    n = 600
    corpus = corpus_of(make_config, choice=choice)
    rows, labels, outputs = corpus.held_out(n), corpus.held_out_labels(n), corpus.held_out_hidden(n)
    assert corpus.label_names == ("output_new", "output_again")
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].min() >= 1
    assert rows[:, 1:].max() <= 64
    free: Counter[tuple[int, int]] = Counter()
    for row, label, output in zip(rows.tolist(), labels.tolist(), outputs, strict=True):
        triggers = set((np.flatnonzero(output >= 0) + 1).tolist())
        assert len(triggers) == 3
        if choice == "fixed":
            assert triggers == set(fixed_triggers(3).tolist()) == {1, 2, 3}
        assert not triggers & {int(o) + 1 for o in output[output >= 0]}
        seen: set[int] = set()
        assert label[:2] == [0, 0]
        for before, token, shown in zip(row[1:-1], row[2:], label[2:], strict=True):
            if before in triggers:
                assert token == output[before - 1] + 1
                assert shown == (2 if before in seen else 1)
                seen.add(before)
            else:
                assert shown == 0
                free[before - 1, token - 1] += 1
    counts = np.zeros((64, 64))
    for pair, count in free.items():
        counts[pair] = count
    bigram = load_character_bigrams().bigram
    for before in np.argsort(-counts.sum(axis=1))[:8]:
        n_before = counts[before].sum()
        np.testing.assert_allclose(counts[before] / n_before, bigram[before], atol=4.5 * np.sqrt(0.25 / n_before))
    assert not counts[bigram == 0].any()


def test_outputs_and_first_characters(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    outputs = corpus.held_out_hidden(600)[:, :3]
    shares = np.bincount(outputs.reshape(-1), minlength=64) / outputs.size
    assert not shares[:3].any()
    np.testing.assert_allclose(shares[3:], 1 / 61, atol=4.5 * np.sqrt(1 / 61 / outputs.size))
    first = np.bincount(corpus.held_out(600)[:, 1], minlength=65)[1:] / 600
    np.testing.assert_allclose(first, load_character_bigrams().unigram, atol=4.5 * np.sqrt(0.16 * 0.84 / 600))


def test_random_triggers_are_drawn_by_their_share(make_config: Callable[..., Config]) -> None:
    outputs = corpus_of(make_config, choice="random", n_triggers=1, held_out_rows=2048).held_out_hidden(2048)
    share = (outputs >= 0).mean(axis=0)
    np.testing.assert_allclose(share, load_character_bigrams().unigram, atol=4.5 * np.sqrt(0.16 * 0.84 / 2048))


def test_rows_never_end_in_a_cycle_of_triggers(make_config: Callable[..., Config]) -> None:
    """With most characters as triggers, every second token still is none."""
    corpus = corpus_of(make_config, n_triggers=60, choice="random")
    rows, outputs = corpus.held_out(600)[:, 1:] - 1, corpus.held_out_hidden(600)
    is_trigger = np.take_along_axis(outputs, rows, axis=1) >= 0
    assert not (is_trigger[:, :-1] & is_trigger[:, 1:] & (np.cumsum(is_trigger, axis=1)[:, :-1] > 0)).any()


def test_text_and_ids(make_config: Callable[..., Config]) -> None:
    corpus = corpus_of(make_config)
    text = "The Parrot 1x"
    assert corpus.tokenizer_json is not None
    encoded = Tokenizer.from_str(corpus.tokenizer_json).encode(text)
    assert "".join(corpus.decode(encoded.ids)) == text
    assert min(encoded.ids) >= 1
    assert len(corpus.probe_tokens()) == 58  # 64 but 3 at each end


def test_too_small_a_vocabulary_is_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(UserError, match=r"model.vocab_size = 64: must be 65 or more for data.source = 'triggers'"):
        open_corpus(make_config(source="triggers", vocab_size=64))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"n_ctx": 20}, {"n_triggers": 4}, {"choice": "random"}, {"held_out_rows": 9}]
)
def test_the_fingerprint_tells_configs_apart(make_config: Callable[..., Config], change: dict[str, Any]) -> None:
    plain = corpus_of(make_config).fingerprint
    assert len(plain) == 64
    assert corpus_of(make_config, **change).fingerprint != plain
