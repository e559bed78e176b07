"""Rows of the mixture against a reader of their text, who counts what could have followed instead of knowing how it is
drawn."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus
from icl_jax.data.corpora.generated import BLOCK_ROWS
from icl_jax.data.corpora.held_out_class import held_out_class
from icl_jax.data.corpora.mixture import KINDS, MixtureCorpus, examples_before
from icl_jax.data.corpora.patterns import CLASSES

T = 131
TRAINING = np.arange(4 * BLOCK_ROWS)
AGAIN = 0.25
RULES = ("plus", "minus", "larger", "reversed")


@pytest.fixture(scope="module")
def corpus_of(make_config: Callable[..., Config]) -> Callable[..., MixtureCorpus]:
    def make(**options: Any) -> MixtureCorpus:
        data = {name: options.pop(name) for name in ("n_ctx", "vocab_size", "seed") if name in options}
        fields = {"source": "mixture", "vocab_size": 700, "n_ctx": T, "held_out_rows": BLOCK_ROWS, "seed": 5} | data
        opened = open_corpus(make_config(**fields, **options))
        assert isinstance(opened, MixtureCorpus)
        return opened

    return make


@pytest.fixture(scope="module", params=["digits", "tokens"])
def corpus(request: pytest.FixtureRequest, corpus_of: Callable[..., MixtureCorpus]) -> MixtureCorpus:
    return corpus_of(numbers=request.param, digits=2)


class Read(NamedTuple):
    """What a reader makes of a row, word by word, and what is told in it."""

    labels: list[str]
    before: list[int]
    told: set[tuple[Any, ...]]


def examples(words: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Where each example begins, and its words but the last."""
    start = 2
    for i in range(2, len(words) + 1):
        if i == len(words) or words[i] == ";":
            if i > start:
                yield start, words[start:i]
            start = i + 1


def follows(rule: str, a: int, b: int, n_digits: int = 2) -> int:
    return {"plus": a + b, "minus": abs(a - b), "larger": max(a, b), "reversed": int(f"{a:0{n_digits}}"[::-1])}[rule]


def _class(word: str) -> int:
    return next(i for i, words in enumerate(CLASSES) if word in words)


def read(words: list[str]) -> Read:
    kind = words[1].removesuffix(":")
    labels, before, told = [""] * len(words), [0] * len(words), set()
    said: list[Any] = []
    n_answers, rule = 0, ""
    if kind == "rules":
        sums = re.findall(r"([\d ]+) @ ([\d ]+) = ([\d ]+) ;", " ".join(words[2:]))
        numbers = [tuple(int(part.replace(" ", "")) for part in each) for each in sums]
        (rule,) = (r for r in RULES if all(follows(r, a, b) == c for a, b, c in numbers))
    if kind == "patterns":
        lines = [tuple(line) for _, line in examples(words) if len(line) == 3]
        by_class = {(_class(a), _class(b)): label for a, b, label in lines}
        assert all(by_class[_class(a), _class(b)] == label for a, b, label in lines)
        is_known = all(label == f":{2 * a + b - 2}" for (a, b), label in by_class.items())
    for start, example in examples(words):
        answers: list[tuple[int, int, str]] = []
        if kind in ("sums", "rules"):
            text = " ".join(example)
            if " = " not in text + " ":
                continue
            left, _, right = text.partition(" =")
            a, b = (int(number.replace(" ", "")) for number in left.split(" + " if kind == "sums" else " @ "))
            told.add((min(a, b), max(a, b)))
            n = len(right.split())
            label = rule or ("repeated_sum" if (a, b) in said else "new_sum")
            answers = [(start + len(example) - n, n, label)]
            if kind == "sums" and n == (3 if len(left.split()) > 3 else 1):
                assert int(right.replace(" ", "")) == a + b
            said.append((a, b))
        elif kind == "translation" and "|" in example:
            turn = example.index("|")
            native, foreign = " ".join(example[:turn]).split(" ."), example[turn + 1 :]
            told |= {tuple(sentence.split()) for sentence in native if sentence}
            for i in range(0, len(foreign), 5):
                answers.append((start + turn + 1 + i, len(foreign[i : i + 4]), "translation"))
        elif kind == "glossary" and len(example) == 3:
            if (example[0], example[2]) in said:
                answers = [(start + 2, 1, "glossary")]
            said.append((example[0], example[2]))
            told.add((example[0], example[2]))
        elif kind == "patterns" and len(example) == 3:
            pair = _class(example[0]), _class(example[1])
            label = "repeated_line" if tuple(example) in said else "pattern" if pair in said else "new_classes"
            answers = [(start + 2, 1, "known_pattern" if is_known else label)]
            said += [tuple(example), pair]
            told.add(tuple(example[:2]))
        elif kind == "names":
            if example[0] in said:
                answers = [(start + 1, len(example) - 1, "novel_name")] if len(example) > 1 else []
            said.append(example[0])
            told |= {tuple(example)} if len(example) == 4 else set()
        for at, n, label in answers:
            labels[at : at + n] = [label] * n
            before[at : at + n] = [n_answers] * n
            n_answers += n > 0
    return Read(labels, before, told)


@pytest.fixture(scope="module")
def training_words(corpus: MixtureCorpus) -> list[list[str]]:
    return [[corpus.words[i] for i in row] for row in corpus.rows(TRAINING)]


@pytest.fixture(scope="module")
def held_out_words(corpus: MixtureCorpus) -> list[list[str]]:
    return [[corpus.words[i] for i in row] for row in corpus.held_out(BLOCK_ROWS)]


def test_labels_are_those_that_a_reader_gives(corpus: MixtureCorpus, held_out_words: list[list[str]]) -> None:
    names, labels = ("", *corpus.label_names), corpus.held_out_labels(BLOCK_ROWS)
    before = examples_before(labels)
    found = Counter[str]()
    for words, row, n_before in zip(held_out_words, labels, before, strict=True):
        reader, text = read(words), " ".join(words)
        # A row of one line or two may be both: known labels may be drawn.
        is_unclear = "known_pattern" in reader.labels and "known_pattern" not in {names[i] for i in row}
        assert is_unclear or [names[i] for i in row] == reader.labels, text
        assert [n if i else 0 for n, i in zip(n_before, row, strict=True)] == reader.before, text
        found.update(reader.labels)
    assert set(found) == set(names)
    assert min(found[name] for name in corpus.label_names) > 100, found


def test_what_is_told_in_held_out_rows_is_never_told_in_training(
    training_words: list[list[str]], held_out_words: list[list[str]]
) -> None:
    told = {split: {kind: set[Any]() for kind in KINDS} for split in ("training", "held out")}
    for split, rows in zip(told, (training_words, held_out_words), strict=True):
        for words in rows:
            told[split][words[1].removesuffix(":")] |= read(words).told
    numbers = {split: kinds.pop("sums") | kinds.pop("rules") for split, kinds in told.items()}
    assert len(numbers["held out"]) > 500
    assert not numbers["training"] & numbers["held out"]
    for kind, of_kind in told["held out"].items():
        assert len(of_kind) > 50
        assert not of_kind & told["training"][kind], kind


def _prob_of(weights: dict[tuple[str, ...], float], answer: list[str]) -> Iterator[float]:
    """Chance of each word of a sequence, given weights of all sequences."""
    begun = weights
    for i in range(len(answer)):
        total = sum(begun.values())
        begun = {sequence: w for sequence, w in begun.items() if sequence[i] == answer[i]}
        yield sum(begun.values()) / total


def _unseen(*parts: int) -> bool:
    return bool(held_out_class(*parts) == 0)


def _digits(number: int, width: int) -> tuple[str, ...]:
    return tuple(f"{number:0{width}}")


def sums_by_hand(words: list[str], rules: tuple[str, ...]) -> list[float]:
    """One-digit numbers: every pair, every rule and every earlier example is a way to go on."""
    pairs = [(a, b) for a in range(10) for b in range(10) if not _unseen(3, min(a, b), max(a, b))]
    rows, said = dict.fromkeys(rules, 1.0), list[tuple[int, int]]()
    probs, again = [1.0, 1.0], AGAIN if rules == ("plus",) else 0.0
    for _, example in examples(words):
        share = again if said else 0.0
        weights = Counter[tuple[str, ...]]({(str(a), str(b)): (1 - share) / len(pairs) for a, b in pairs})
        for a, b in said:
            weights[str(a), str(b)] += share / len(said)
        pair = [example[0], *example[2:3]]
        first, *second = _prob_of(weights, pair)
        probs += [first, 1.0, *second, 1.0][: len(example)]
        if len(example) < 4:
            break
        a, b = int(pair[0]), int(pair[1])
        said.append((a, b))
        results = Counter[tuple[str, ...]]()
        for rule, weight in rows.items():
            results[_digits(follows(rule, a, b, 1), 2)] += weight
        probs += [*_prob_of(results, example[4:]), 1.0]
        rows = {r: w for r, w in rows.items() if _digits(follows(r, a, b, 1), 2) == tuple(example[4:])}
    return probs


def patterns_by_hand(words: list[str]) -> list[float]:
    """Two words a class: every way to label four pairs of classes may be the row's, one of them in a quarter."""
    n = 2
    first, second = (*CLASSES[0][:n], *CLASSES[1][:n]), (*CLASSES[2][:n], *CLASSES[3][:n])
    pairs = [(a, b) for i, a in enumerate(first) for j, b in enumerate(second) if not _unseen(4, i, j)]
    ways = [(labels, 0.75 / 11880) for labels in permutations(range(12), 4)] + [((0, 1, 2, 3), 0.25)]
    said, probs = list[tuple[str, str]](), [1.0, 1.0]
    for _, example in examples(words):
        share = AGAIN if said else 0.0
        weights = Counter[tuple[str, ...]]({pair: (1 - share) / len(pairs) for pair in pairs})
        for pair in said:
            weights[pair] += share / len(said)
        probs += _prob_of(weights, example[:2])
        if len(example) < 3:
            break
        said.append((example[0], example[1]))
        classes = 2 * _class(example[0]) + _class(example[1]) - 2
        left = [(labels, w) for labels, w in ways if labels[classes] == int(example[2][1:])]
        probs += [sum(w for _, w in left) / sum(w for _, w in ways), 1.0]
        ways = left
    return probs


def entries_by_hand(words: list[str], kind: str) -> list[float]:
    """Names and glossaries: what is said for the first time is one of the words left, of the right class at the end."""
    from icl_jax.data.corpora.kinds.entries import Names
    from icl_jax.data.corpora.stories_grammar import FOREIGN, NATIVE

    n_entries = 3 if kind == "names" else 6
    said, used, probs = list[tuple[str, ...]](), list[str](), [1.0, 1.0]

    def n_left(words: tuple[str, ...], class_: int) -> int:
        return sum(word not in used for i, word in enumerate(words) if i % 4 != class_)

    for _, example in examples(words):
        is_again = any(example[0] == entry[0] for entry in said)
        if is_again:
            here = [1 / n_entries, *[1.0] * (len(example) - 1)]
        elif kind == "names":
            here = [(1 - len(said) / n_entries) / (60 - len(used)), *(1 / (59 - len(used) - i) for i in (0, 1))]
            if len(example) == 4:
                places = [Names.words.index(word) for word in example]
                used += example[:3]
                here.append(1 / n_left(Names.words[:-1], int(held_out_class(5, *places[:3]))))
                used.append(example[3])
        else:
            here = [(1 - len(said) / 6) / (16 - len(said)), 1.0]
            if len(example) == 3:
                here.append(1 / n_left(FOREIGN, int(held_out_class(6, NATIVE.index(example[0])))))
                used.append(example[2])
        if not is_again:
            said.append(tuple(example))
        probs += [*here[: len(example)], 1.0]
    return probs


BY_HAND: dict[str, tuple[dict[str, Any], Callable[[list[str]], list[float]]]] = {
    "sums": ({"digits": 1}, lambda words: sums_by_hand(words, ("plus",))),
    "rules": ({"digits": 1}, lambda words: sums_by_hand(words, RULES)),
    "patterns": ({"class_words": 2}, patterns_by_hand),
    "names": ({}, lambda words: entries_by_hand(words, "names")),
    "glossary": ({}, lambda words: entries_by_hand(words, "glossary")),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_floor_is_the_chance_of_each_word_by_counting_what_could_follow(
    corpus_of: Callable[..., MixtureCorpus], kind: str
) -> None:
    options, by_hand = BY_HAND[kind]
    corpus = corpus_of(**dict.fromkeys(KINDS, 0.0) | {kind: 1.0} | options)
    ids = np.arange(40)
    for row, nats in zip(corpus.rows(ids), corpus.row_floor_nats(ids), strict=True):
        words = [corpus.words[i] for i in row]
        expected = by_hand(words)[: len(words)]
        np.testing.assert_allclose(np.exp(-nats.astype(np.float64))[: len(expected)], expected, rtol=2e-5)
        assert len(expected) >= len(words) - 8  # but for an example that the row's end cuts off


def _entropy(sequences: list[bytes]) -> float:
    """Of sequences drawn, plug-in, with the correction of Miller and Madow for its bias."""
    p = np.array(list(Counter(sequences).values())) / len(sequences)
    return float(-(p * np.log(p)).sum() + (len(p) - 1) / (2 * len(sequences)))


@pytest.mark.parametrize(
    ("kind", "n"), [("sums", 6), ("rules", 7), ("patterns", 6), ("translation", 3), ("glossary", 2)]
)
def test_floor_is_the_entropy_of_rows_drawn(corpus_of: Callable[..., MixtureCorpus], kind: str, n: int) -> None:
    """The first words of rows, of so few that they can be counted."""
    few = {"digits": 1, "class_words": 2, "words": 4}
    corpus = corpus_of(**dict.fromkeys(KINDS, 0.0) | {kind: 1.0, "n_ctx": 1 + n} | few)
    ids = np.arange(32 * BLOCK_ROWS)
    rows, nats = corpus.rows(ids), corpus.row_floor_nats(ids).sum(axis=1)
    found = _entropy([row.tobytes() for row in rows])
    assert nats.mean() == pytest.approx(found, abs=0.01 + 4 * nats.std() / np.sqrt(len(ids)))


def test_floor_of_all_kinds_and_their_shares(corpus_of: Callable[..., MixtureCorpus]) -> None:
    corpus = corpus_of(sums=3.0, names=0.0)
    kinds = Counter(corpus.words[i] for i in corpus.rows(TRAINING)[:, 1])
    shares = {f"{kind}:": 3 / 7 if kind == "sums" else 1 / 7 for kind in KINDS if kind != "names"}
    assert kinds.keys() == shares.keys()
    for kind, share in shares.items():
        assert abs(kinds[kind] / len(TRAINING) - share) < 4.5 * np.sqrt(share * (1 - share) / len(TRAINING))
    nats = corpus.row_floor_nats(TRAINING)
    assert nats[:, 1].mean() == pytest.approx(-sum(p * np.log(p) for p in shares.values()), abs=0.05)
    assert (nats[:, 0] == 0).all()
    by_label = {
        name: nats[corpus.row_labels(TRAINING) == i + 1].mean() for i, name in enumerate(corpus.label_names)
    }  # fmt: skip
    for label in ("new_sum", "repeated_sum", "translation", "glossary", "pattern", "repeated_line"):
        assert by_label[label] == 0
    assert 0 < by_label["known_pattern"] < 0.1 < by_label["new_classes"]


def test_translations_are_words_of_the_dictionary_in_another_order(corpus_of: Callable[..., MixtureCorpus]) -> None:
    corpus = corpus_of(**dict.fromkeys(KINDS, 0.0) | {"translation": 1.0})
    native, foreign = ([corpus.words[i] for i in ids] for ids in corpus.dictionary())
    assert len(set(native) | set(foreign)) == 2 * 3 * 24
    translated = dict(zip(native, foreign, strict=True))
    for row in corpus.rows(TRAINING[:50]):
        for _, story in examples([corpus.words[i] for i in row][: T - 30]):
            if "|" not in story:
                continue
            turn = story.index("|")
            told, again = (" ".join(part).split(" .") for part in (story[:turn], story[turn + 1 :]))
            for sentence, same in zip(told, again, strict=False):
                if same:
                    subject, verb, adjective, object_ = (translated[word] for word in sentence.split())
                    assert same.split() == [subject, object_, adjective, verb][: len(same.split())]


@pytest.mark.parametrize("n_ctx", [2, 3, 23])
def test_rows_of_any_length(corpus_of: Callable[..., MixtureCorpus], n_ctx: int) -> None:
    corpus, long = corpus_of(n_ctx=n_ctx), corpus_of()
    rows = corpus.rows(np.arange(9))
    assert rows.shape == (9, n_ctx + 1)
    np.testing.assert_array_equal(rows[:, :2], long.rows(np.arange(9))[:, :2])


def test_known_row(corpus_of: Callable[..., MixtureCorpus]) -> None:
    """A change here makes runs in progress unresumable: raise VERSION with it."""
    corpus = corpus_of()
    assert (
        " ".join(corpus.decode(corpus.rows(np.array([999]))[0, :14]))
        == "<|bos|> names: Ne Li Fe Ru ; Fo Na Ra Si ; Ne Li"
    )
    assert corpus.vocab_size == 324


def test_too_small_a_vocabulary_is_refused(corpus_of: Callable[..., MixtureCorpus]) -> None:
    with pytest.raises(UserError, match=r"model.vocab_size = 323: must be 324 or more"):
        corpus_of(vocab_size=323)
    assert corpus_of(vocab_size=700).vocab_size == 324


def test_the_fingerprint_tells_options_apart(corpus_of: Callable[..., MixtureCorpus]) -> None:
    prints = [corpus_of(**options).fingerprint for options in ({}, {"seed": 6}, {"again": 0.5}, {"sums": 2.0})]
    assert len(set(prints)) == 4
    assert corpus_of().fingerprint == prints[0]


def test_the_card_shows_what_is_there(checkout: Path, corpus_of: Callable[..., MixtureCorpus]) -> None:
    """docs/mixture.md: its code runs, its rows are those, its figures are these."""
    page = (checkout / "docs" / "mixture.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/mixture.md", "exec"), names)
    corpus = names["corpus"]
    begins = re.findall(r"^\| \w+ \| (\d+) \| `(.*)` \|$", page, re.MULTILINE)
    assert len(begins) == len(KINDS)
    for number, text in begins:
        row = " ".join(corpus.decode(corpus.held_out(64)[int(number)]))
        assert row.startswith(f"<|bos|> {text}".replace(r"\|", "|"))
    said = {name: float(nats) for name, nats in re.findall(r"^\| `?([\w:]+)`? \| ([\d.]+) \|$", page, re.MULTILINE)}
    found = {"all": names["floor"]} | names["floor_by_kind"]
    assert said == pytest.approx({name: float(nats) for name, nats in found.items()}, abs=0.006)
    text = " ".join(page.split())
    counts = np.bincount(corpus.held_out_labels(512).reshape(-1))[1:]
    for name, count in zip(corpus.label_names, counts, strict=True):
        assert f"`{name}` {count:,}" in text
