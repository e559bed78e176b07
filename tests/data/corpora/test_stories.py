"""Rows of the stories corpus against a reader of their text, which knows English words and not the grammar's arrays."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.data.corpora import stories_grammar
from icl_jax.data.corpora.generated import BLOCK_ROWS
from icl_jax.data.corpora.held_out_class import held_out_class
from icl_jax.data.corpora.stories import StoriesCorpus, label_floor_nats
from icl_jax.data.corpora.stories_grammar import GRAMMAR
from icl_jax.data.text.text_ids import encode_text

V, T = len(GRAMMAR.words), 131
TITLES = ("Doctor", "Captain", "Professor", "Judge", "Baker", "Queen")
NOUN_OF = {
    "green": "grass", "blue": "sky", "deep": "sea", "tall": "tree", "white": "snow", "hot": "soup",
    "sharp": "knife", "sweet": "honey", "bright": "star", "cold": "wind", "old": "clock", "loud": "drum",
}  # fmt: skip
TRAINING = np.arange(8 * BLOCK_ROWS)


@pytest.fixture(scope="module")
def corpus(make_config: Callable[..., Config]) -> StoriesCorpus:
    opened = open_corpus(make_config(source="stories", vocab_size=V, n_ctx=T, held_out_rows=2 * BLOCK_ROWS, seed=5))
    assert isinstance(opened, StoriesCorpus)
    return opened


@pytest.fixture(scope="module")
def training_words(corpus: StoriesCorpus) -> list[list[str]]:
    return [[GRAMMAR.words[i] for i in row] for row in corpus.rows(TRAINING)]


@pytest.fixture(scope="module")
def held_out_words(corpus: StoriesCorpus) -> list[list[str]]:
    return [[GRAMMAR.words[i] for i in row] for row in corpus.held_out(2 * BLOCK_ROWS)]


class Read(NamedTuple):
    """What a reader finds in a row."""

    labels: list[str]
    names: set[tuple[str, ...]]
    sums: set[tuple[int, int]]
    glossed: set[tuple[str, ...]]


def read(words: list[str]) -> Read:
    """Labels of a row's words by reading it, and what is told in it."""
    labels = [""] * len(words)
    names, sums, glossed = set(), set(), set()
    said: set[object] = set()
    language = ""
    for i, word in enumerate(words):
        rest = words[i : i + 5]
        if word == "<|bos|>":
            said, language = set(), ""
        elif word == "in" and words[i - 1] == "<|bos|>" and len(rest) > 1:
            language = rest[1]
        elif word in TITLES and len(rest) > 1:
            labels[i + 1] = "known_name" if word in said else ""
            said.add(word)
        elif re.fullmatch("[GMRZKNLB][aeiou]", word):
            syllables = [w for w in rest[1:4] if re.fullmatch("[gmrzknlb][aeiou]", w)]
            labels[i + 1 : i + 1 + len(syllables)] = ["novel_name" if word in said else ""] * len(syllables)
            said.add(word)
            if len(syllables) == 3:
                names.add((word, *syllables))
        elif word in NOUN_OF and len(rest) > 1:
            labels[i + 1] = "bigram"
        elif word.isdigit() and len(rest) == 5 and (rest[1], rest[3]) == ("plus", "is"):
            pair = int(word), int(rest[2])
            assert int(rest[4]) == sum(pair)
            labels[i + 4] = "repeated_sum" if pair in said else "new_sum"
            said.add(pair)
            sums.add(pair)
        elif rest[1:2] == ["is"] and not word.isdigit() and len(rest) > 2 and word != "this":
            entry = (language, word, rest[2])
            labels[i + 2] = "glossary" if entry in said else ""
            said.add(entry)
            glossed.add(entry)
    return Read(labels, names, sums, glossed)


def test_labels_are_those_that_a_reader_gives(
    corpus: StoriesCorpus, training_words: list[list[str]], held_out_words: list[list[str]]
) -> None:
    names = ("", *corpus.label_names)
    for rows, labels in (
        (held_out_words, corpus.held_out_labels(2 * BLOCK_ROWS)),
        (training_words[:300], corpus.row_labels(TRAINING[:300])),
    ):
        for words, row in zip(rows, labels, strict=True):
            assert [names[i] for i in row] == read(words).labels, " ".join(words)


def test_every_label_has_its_500_tokens_in_512_held_out_rows(make_config: Callable[..., Config]) -> None:
    corpus = open_corpus(make_config(source="stories", vocab_size=V, n_ctx=128, held_out_rows=512))
    counts = np.bincount(corpus.held_out_labels(512).reshape(-1))
    assert corpus.label_names == ("bigram", "known_name", "novel_name", "repeated_sum", "new_sum", "glossary")
    assert len(counts) == 7
    assert counts.min() >= 500


@pytest.fixture(scope="module")
def told_in_training(training_words: list[list[str]]) -> list[Read]:
    return [read(words) for words in training_words]


def _all(found: list[Read], part: str) -> set[tuple[object, ...]]:
    return set().union(*(getattr(one, part) for one in found))


@pytest.mark.parametrize(("part", "n_at_least"), [("names", 2000), ("sums", 1000), ("glossed", 300)])
def test_what_is_new_in_held_out_rows_never_occurs_in_training(
    told_in_training: list[Read], held_out_words: list[list[str]], part: str, n_at_least: int
) -> None:
    training, held_out = _all(told_in_training, part), _all([read(words) for words in held_out_words], part)
    assert len(held_out) >= n_at_least
    assert not training & held_out
    assert len(training) > 2 * len(held_out) or part == "sums"


def test_the_split_is_a_quarter_whatever_the_seed(told_in_training: list[Read]) -> None:
    """Of 10,000 sums 7,500 may be trained on, and long training meets most of them; each first number has its class."""
    sums = _all(told_in_training, "sums")
    seen = np.zeros((100, 100), bool)
    seen[tuple(np.array(sorted(sums)).T)] = True
    by_class = seen.reshape(100, 25, 4).any(axis=1)
    assert (by_class.sum(axis=1) == 3).all()
    np.testing.assert_array_equal(np.argmin(by_class, axis=1), held_out_class(1, np.arange(100)))
    counts = np.bincount(held_out_class(2, np.repeat(np.arange(50), 60), np.tile(np.arange(60), 50)))
    np.testing.assert_allclose(counts / 3000, 0.25, atol=4 * np.sqrt(0.19 / 3000))


def test_the_hash_is_splitmix64() -> None:
    """A change would put other names into the training rows of runs in progress."""

    def by_hand(*parts: int) -> int:
        x = 0
        for part in parts:
            x = (x + part + 0x9E3779B97F4A7C15) % 2**64
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
            x ^= x >> 31
        return x % 4

    for parts in ((0,), (1, 2), (0, 39, 7, 12), (2, 5, 15)):
        assert held_out_class(*parts) == by_hand(*parts)
    assert held_out_class(0, np.array([3, 4]), np.array([5, 6])).tolist() == [by_hand(0, 3, 5), by_hand(0, 4, 6)]


def _stories(rows: list[list[str]]) -> Iterator[list[str]]:
    """Stories that are there to their end."""
    for words in rows:
        starts = [i for i, word in enumerate(words) if word == "<|bos|>"]
        yield from (words[i + 1 : j] for i, j in pairwise(starts))


def test_stories_are_whole_and_each_names_one_title_and_two_new_names(training_words: list[list[str]]) -> None:
    whole = list(_stories(training_words))
    assert len(whole) > 1500
    for story in whole:
        assert story[-1] == "."
        titled = {pair for pair in pairwise(story) if pair[0] in TITLES}
        assert len(titled) == 1
        names = read(["<|bos|>", *story]).names
        assert len(names) == 2
        # Each syllable has one that follows it.
        assert len({syllable for name in names for syllable in name}) == 8
        n_sentences = story.count(".")
        has_glossary = story[0] == "in"
        assert 9 <= n_sentences - has_glossary <= 13
        assert len(read(["<|bos|>", *story]).glossed) == 3 * has_glossary
    assert any(story[:2] == ["one", "morning"] for story in whole)


def test_rows_start_with_a_story_and_are_filled(corpus: StoriesCorpus, training_words: list[list[str]]) -> None:
    rows = corpus.rows(TRAINING)
    assert rows.shape == (len(TRAINING), T + 1)
    assert rows.dtype == np.int32
    assert (rows[:, 0] == corpus.bos_id).all()
    assert not ((rows[:, 1:] == corpus.bos_id) & (rows[:, :-1] == corpus.bos_id)).any()
    assert {words[1] for words in training_words} >= {"in", "one", "long", "this"}
    assert len(np.unique(rows)) > 0.95 * V


@pytest.mark.parametrize("n_ctx", [2, 37, 400])
def test_rows_of_any_length_are_filled(make_config: Callable[..., Config], n_ctx: int) -> None:
    corpus = open_corpus(make_config(source="stories", vocab_size=V, n_ctx=n_ctx))
    rows, labels = corpus.held_out(11), corpus.held_out_labels(11)
    names = ("", *corpus.label_names)
    for row, label in zip(rows, labels, strict=True):
        words = [GRAMMAR.words[i] for i in row]
        assert "<|bos|> <|bos|>" not in " ".join(words)
        assert [names[i] for i in label] == read(words).labels


@settings(max_examples=15)
@given(ids=st.lists(st.integers(0, 3 * BLOCK_ROWS), max_size=9))
def test_a_row_depends_on_its_id_alone(
    corpus: StoriesCorpus, make_config: Callable[..., Config], ids: list[int]
) -> None:
    rows = corpus.rows(np.array(ids, np.int64))
    assert rows.shape == (len(ids), T + 1)
    for i, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(corpus.rows(np.array([i]))[0], row)
    config = make_config(source="stories", vocab_size=V, n_ctx=T, seed=5)
    np.testing.assert_array_equal(StoriesCorpus(config).rows(np.array(ids[:1], np.int64)), rows[:1])


def test_known_row(corpus: StoriesCorpus) -> None:
    """A change here makes runs in progress unresumable: raise VERSION with it."""
    text = "<|bos|> in Quon , fish is vib , bread is fot , rain is pol . this is the story of Li gu me"
    assert " ".join(corpus.decode(corpus.rows(np.array([999]))[0, :24])) == text


# The floor.


def test_the_card_shows_what_is_there(checkout: Path, make_config: Callable[..., Config]) -> None:
    """docs/stories.md: its code runs, its story is that row, its figures are these."""
    page = (checkout / "docs" / "stories.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/stories.md", "exec"), names)
    corpus, floor = names["corpus"], names["floor"]
    story = " ".join(line.removeprefix("> ") for line in page.splitlines() if line.startswith("> "))
    assert " ".join(corpus.decode(corpus.held_out(25)[24])) == f"<|bos|> {story} <|bos|>"
    counts = np.bincount(corpus.held_out_labels(512).reshape(-1))[1:]
    text = " ".join(page.split())
    for name, count in zip(corpus.label_names, counts, strict=True):
        assert f"`{name}` {count:,}" in text
    rows = dict(re.findall(r"^\| (.*?) \| ([\d.]+) \|$", page, re.MULTILINE))
    said = {name.partition(":")[0]: float(nats) for name, nats in rows.items()}
    assert said["mean over the positions"] == pytest.approx(floor.mean(), abs=0.01)
    assert said["positions 64 to 96, inside of most stories"] == pytest.approx(floor[63:96].mean(), abs=0.01)
    assert said["last position, often a second story"] == pytest.approx(floor[-1], abs=0.04)
    for position in (1, 2, 4):
        assert said[f"position {position}"] == pytest.approx(floor[position - 1], abs=0.02)
    assert said["`bigram`"] == pytest.approx(names["floor_by_label"]["bigram"], abs=0.005)
    assert f"{len(GRAMMAR.words)} words" in text


def _frequency_is(observed: int, n: int, p: float) -> bool:
    return bool(abs(observed / n - p) <= 4.5 * np.sqrt(p * (1 - p) / n))


def test_floor_of_each_label(corpus: StoriesCorpus) -> None:
    floors = label_floor_nats()
    assert floors["bigram"] == pytest.approx(0.95 * -np.log(0.95) + 0.05 * -np.log(0.05 / 11))
    assert [floors[name] for name in corpus.label_names[1:]] == [0] * 5
    nats, labels = corpus.row_floor_nats(TRAINING), corpus.row_labels(TRAINING)
    for i, name in enumerate(corpus.label_names):
        of_label = nats[labels == i + 1]
        assert of_label.mean() == pytest.approx(floors[name], abs=1e-6 + 4 * of_label.std() / np.sqrt(len(of_label)))
    rows = corpus.rows(TRAINING)
    row, t = np.nonzero(labels == 1)
    nouns = [GRAMMAR.words[i] for i in rows[row, t]]
    right = [NOUN_OF[GRAMMAR.words[i]] for i in rows[row, t - 1]]
    assert _frequency_is(sum(a == b for a, b in zip(nouns, right, strict=True)), len(nouns), 0.95)


def test_probabilities_of_a_story_are_those_computed_by_hand(
    corpus: StoriesCorpus, training_words: list[list[str]]
) -> None:
    """Each sentence's chance, from the weights as they are written in the grammar."""
    nats = corpus.row_floor_nats(TRAINING)
    found = Counter[str]()
    for words, row in zip(training_words, np.exp(-nats.astype(np.float64)), strict=True):
        assert row[0] == 1
        text = " ".join(words)
        n_glossary = 15 * (words[1] == "in")
        assert row[1] == pytest.approx(0.8 if n_glossary else 0.05 if words[1].islower() else 0.05 / 12, rel=1e-5)
        if n_glossary:
            # in LANGUAGE , NATIVE is FOREIGN , NATIVE is FOREIGN , NATIVE is FOREIGN .
            np.testing.assert_allclose(row[[2, 4, 8, 12]], [1 / 6, 1 / 16, 1 / 15, 1 / 14], rtol=1e-5)
            np.testing.assert_allclose(row[[3, 5, 7, 9, 11, 13, 15]], 1, rtol=1e-5)
            assert 1 / 18 - 1e-6 <= row[6] <= row[14] <= 1 / 16 + 1e-6 or row[6] == pytest.approx(1 / 18, rel=1e-5)
        opening = words[1 + n_glossary :]
        at = 1 + n_glossary
        if opening[:2] == ["one", "morning"]:
            # one morning TITLE SURNAME met A0 A1 A2 A3 and B0 B1 B2 B3 near ...
            np.testing.assert_allclose(row[at : at + 2], [1 / 4 if n_glossary else 0.2 / 4, 1], rtol=1e-5)
            np.testing.assert_allclose(row[at + 2 : at + 5], [1 / 6, 1 / 10, 1], rtol=1e-5)
            np.testing.assert_allclose(row[at + 5 : at + 8], [1 / 12, 1 / 40, 1 / 39], rtol=1e-5)
            np.testing.assert_allclose(row[at + 9 : at + 13], [1, 1 / 11, 1 / 37, 1 / 36], rtol=1e-5)
            assert 1 / 30 - 1e-6 <= row[at + 8] <= 1 / 28 + 1e-6  # 10 of 40 are held out; two are taken
            found["morning"] += 1
        begin = opening.index(".") + 1
        first_body, at = opening[begin:], at + begin
        if first_body[:1] == ["so"] and first_body[1].isdigit():
            # so A plus B is C , of course . ; "so" may also be about the glossary, "so WORD , and OTHER ."
            n_weights = 25 if n_glossary else 17
            assert row[at] == pytest.approx((7 if n_glossary else 3) / n_weights, rel=1e-5)
            assert row[at + 1] == pytest.approx((3 / 7 if n_glossary else 1) / 100, rel=1e-5)
            np.testing.assert_allclose(row[at + 2 : at + 6], [1, 1 / 75, 1, 1], rtol=1e-5)
            found["so number"] += 1
        if first_body[:1] == ["so"] and not first_body[1].isdigit():
            assert row[at] == pytest.approx(7 / 25, rel=1e-5)
            np.testing.assert_allclose(row[at + 1 : at + 4], [4 / 7 / 3, 1, 1], rtol=1e-5)
            assert row[at + 6] == pytest.approx(1 / 2, rel=1e-5)
            found["so word"] += 1
        if match := re.search(r"so (\d+) plus (\d+) is \d+ , of course \. so \1 plus \2", text):
            # Two sums: the one said, or another.
            again = len(text[: match.start()].split()) + 10
            said = {m.group(1) for m in re.finditer(r"(\d+) plus", text[: match.end()].rsplit("<|bos|>", 1)[1])}
            if not n_glossary and match.start() < len(" ".join(words[:again])) and "<|bos|>" not in words[1:again]:
                assert row[again + 1] == pytest.approx(1 / 2, rel=1e-5), said
                np.testing.assert_allclose(row[again + 2 : again + 6], 1, rtol=1e-5)
                found["again"] += 1
    assert _frequency_is(sum(words[1] == "in" for words in training_words), len(training_words), 0.8)
    assert min(found[name] for name in ("morning", "so number", "so word", "again")) >= 10, found


def test_entropy_by_position_is_that_of_counted_tokens(corpus: StoriesCorpus) -> None:
    """Plug-in entropy of the first tokens, with the correction of Miller and Madow for its bias."""
    ids = np.arange(16 * BLOCK_ROWS)
    rows, nats = corpus.rows(ids), corpus.row_floor_nats(ids)

    def entropy(n_tokens: int) -> float:
        counts = np.array(list(Counter(row.tobytes() for row in rows[:, : n_tokens + 1]).values()))
        p = counts / counts.sum()
        return float(-(p * np.log(p)).sum() + (len(p) - 1) / (2 * counts.sum()))

    for n in (1, 2):
        standard_error = nats[:, 1 : n + 1].sum(axis=1).std() / np.sqrt(len(ids))
        assert nats[:, 1 : n + 1].sum(axis=1).mean() == pytest.approx(entropy(n), abs=4 * standard_error + 0.01)


def test_stories_end_when_the_grammar_says(corpus: StoriesCorpus, training_words: list[list[str]]) -> None:
    """7 to 11 sentences follow the opening, all equally likely; those ending late are cut off more often."""
    nats = corpus.row_floor_nats(TRAINING)
    closings = ("that was a good day .", "and so the day ended .", "everybody slept well .")
    ended, went_on = Counter[int](), Counter[int]()
    for words, row in zip(training_words, nats, strict=True):
        n_before = -1 - (words[1] == "in")
        for i, word in enumerate(words[:-6]):
            if word != ".":
                continue
            n_before += 1
            is_end = " ".join(words[i + 1 :]).startswith(closings)
            if n_before >= 7:
                if is_end:
                    assert row[i + 1] == pytest.approx(np.log(3 * (12 - n_before)), rel=1e-5)
                (ended if is_end else went_on)[n_before] += 1
            assert not (is_end and n_before < 7)
            if is_end:
                break
    for n in (7, 8, 9):
        assert _frequency_is(ended[n], ended[n] + went_on[n], 1 / (12 - n))
    assert went_on[11] == 0


# Around it.


def test_text_is_encoded_by_the_words_of_the_corpus(corpus: StoriesCorpus) -> None:
    tokenizer = Tokenizer.from_str(corpus.tokenizer_json)
    text = "Doctor Smith counted : 48 plus 76 is 124 ."
    ids = encode_text(text, tokenizer, V)
    assert [GRAMMAR.words[i] for i in ids] == text.split()
    assert " ".join(corpus.decode(ids)) == text
    assert corpus.decode([corpus.bos_id]) == ["<|bos|>"]
    row = corpus.held_out(1)[0]
    assert encode_text(" ".join(corpus.decode(row[1:10])), tokenizer, V) == row[1:10].tolist()
    with pytest.raises(UserError, match="Gigamuru"):
        encode_text("Doctor Gigamuru", tokenizer, V)


def test_words_are_all_different_and_sentences_can_be_told_apart() -> None:
    assert len(set(GRAMMAR.words)) == len(GRAMMAR.words)
    for kind in ("glossary", "opening", "body", "body after glossary", "closing"):
        assert GRAMMAR.of_kind(kind)[1].sum() == pytest.approx(1)
    texts = [template.symbols for template in GRAMMAR.templates if template.kind == "body after glossary"]
    assert len(set(texts)) == len(texts)


def test_a_smaller_vocabulary_is_refused(make_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"model.vocab_size = {V - 1}: must be {V} or more"):
        open_corpus(make_config(source="stories", vocab_size=V - 1))
    assert open_corpus(make_config(source="stories", vocab_size=V + 7)).vocab_size == V
    with pytest.raises(UserError, match=r"data.source = 'story': must be 'repeats', .*'stories'"):
        make_config(source="story")


@pytest.mark.parametrize("change", [{"seed": 1}, {"n_ctx": 20}, {"held_out_rows": 12}])
def test_the_fingerprint_tells_configs_apart(make_config: Callable[..., Config], change: dict[str, int]) -> None:
    plain = open_corpus(make_config(source="stories", vocab_size=V)).fingerprint
    assert len(plain) == 64
    assert open_corpus(make_config(source="stories", vocab_size=V)).fingerprint == plain
    assert open_corpus(make_config(source="stories", vocab_size=V, **change)).fingerprint != plain


def test_the_fingerprint_tells_grammars_apart(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_corpus(make_config(source="stories", vocab_size=V)).fingerprint
    monkeypatch.setattr(stories_grammar, "PARTNER_PROB", 0.5)
    assert open_corpus(make_config(source="stories", vocab_size=V)).fingerprint != plain


def test_ids_out_of_range_are_refused(corpus: StoriesCorpus) -> None:
    with pytest.raises(IndexError, match="0 or more"):
        corpus.rows(np.array([-1]))
    for n in (-1, 2 * BLOCK_ROWS + 1):
        with pytest.raises(IndexError, match="there are 1024"):
            corpus.held_out(n)
        with pytest.raises(IndexError, match="there are 1024"):
            corpus.held_out_labels(n)


def test_probe_tokens_leave_out_bos_and_the_most_common(corpus: StoriesCorpus) -> None:
    tokens = corpus.probe_tokens()
    assert corpus.bos_id not in tokens
    assert GRAMMAR.id_of["."] not in tokens
    assert 0.85 * V < len(tokens) < V
