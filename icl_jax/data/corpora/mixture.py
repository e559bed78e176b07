"""The ``mixture`` corpus: rows of six kinds, each a task that a model can only do with what stands in the row.

A row is BOS, the name of its kind and examples of that kind to the row's end: sums, sums by a rule that only examples
tell, little stories in two languages, a dictionary made anew, lines whose label only classes of words tell, and names
made anew. Shares and sizes are options. What is new in a held-out row (pairs of numbers, sentences, entries of a
dictionary, pairs of words, names) is of a quarter that no training row has, whatever the seed: asserted of every block.
Every token's probability given all before it is known exactly, and with it the loss that no model beats on average.
Source of the behaviours: Olsson et al. 2022, Argument 4, and the article that introduces it.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block
from icl_jax.data.corpora.held_out_class import N_CLASSES
from icl_jax.data.corpora.kinds.entries import Glossary, Names
from icl_jax.data.corpora.kinds.kind import Kind
from icl_jax.data.corpora.kinds.pairs import Patterns, Rules, Sums
from icl_jax.data.corpora.kinds.translation import Translation
from icl_jax.data.corpora.patterns import CLASSES
from icl_jax.data.corpora.words import WordsCorpus
from icl_jax.data.corpus import BOS, Progress

VERSION = 1
"""Goes up whenever the rows of a given config change."""

KINDS = ("sums", "rules", "translation", "glossary", "patterns", "names")


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOptions(Options):
    """Sums, rules, translation, glossaries, patterns and names, each kind in rows of its own."""

    sums: float = 1.0
    """Share of rows of sums, beside the other shares."""
    rules: float = 1.0
    """Share of rows whose examples alone tell the rule: plus, minus, larger or reversed."""
    translation: float = 1.0
    """Share of rows of stories told in two languages."""
    glossary: float = 1.0
    """Share of rows of a dictionary made anew."""
    patterns: float = 1.0
    """Share of rows of lines whose label the classes of their words tell."""
    names: float = 1.0
    """Share of rows of names made anew."""
    digits: int = 2
    """Decimal digits of the numbers that are added."""
    numbers: Literal["digits", "tokens"] = "digits"
    """A token for each digit, or one for each number."""
    again: float = 0.25
    """Share of sums and of lines that are one of the row's earlier ones, the first apart."""
    words: int = 24
    """Nouns, verbs and adjectives, of each, in either language."""
    sentences: int = 2
    """Sentences of a story before it is told again."""
    entries: int = 6
    """Entries of a dictionary."""
    class_words: int = 12
    """Words of each class of the patterns."""

    def __post_init__(self) -> None:
        check_types("data.mixture", self)

        def need(name: str, is_right: bool, allowed: str) -> None:
            require(is_right, f"data.mixture.{name}", getattr(self, name), allowed)

        for kind in KINDS:
            need(kind, getattr(self, kind) >= 0, "must be 0 or more")
        need(KINDS[0], any(getattr(self, kind) for kind in KINDS), f"one of {', '.join(KINDS)} must be more than 0")
        need("digits", 1 <= self.digits <= 3, "must be from 1 to 3")
        need("again", 0 <= self.again < 1, "must be 0 or more and less than 1")
        is_right = N_CLASSES <= self.words <= 400 and self.words % N_CLASSES == 0
        need("words", is_right, f"must be a multiple of {N_CLASSES} from {N_CLASSES} to 400")
        need("sentences", 1 <= self.sentences <= 100, "must be from 1 to 100")
        need("entries", 1 <= self.entries <= 6, "must be from 1 to 6")
        need("class_words", 2 <= self.class_words <= len(CLASSES[0]), f"must be from 2 to {len(CLASSES[0])}")

    @property
    def kinds(self) -> dict[str, Kind]:
        """Those with a share, by name."""
        as_digits = self.numbers == "digits"
        made: dict[str, Kind] = {
            "sums": Sums(self.digits, as_digits, self.again),
            "rules": Rules(self.digits, as_digits),
            "translation": Translation(self.words, self.sentences),
            "glossary": Glossary(self.entries),
            "patterns": Patterns(self.class_words, self.again),
            "names": Names(),
        }
        return {name: kind for name, kind in made.items() if getattr(self, name)}


def examples_before(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many answers stand before each token of rows [row, position], its own not counted.

    An answer is tokens of one label, one after another: the digits of a result, the syllables of a name.
    """
    is_start = labels > 0
    is_start[:, 1:] &= labels[:, 1:] != labels[:, :-1]
    return np.cumsum(is_start, axis=1) - (labels > 0)


class MixtureCorpus(WordsCorpus):
    """Rows of the kinds with a share, in random order. Hidden: -log P of each token given all before it, nats."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        """Raises UserError if ``model.vocab_size`` is less than the number of words."""
        super().__init__(config)
        self._options = config.data.options_of(MixtureOptions)
        self._kinds = self._options.kinds
        marks, words = map(_mark, self._kinds), (word for kind in self._kinds.values() for word in kind.words)
        self._set_words(tuple(dict.fromkeys((BOS, *marks, *words))), config)
        self.label_names = tuple(dict.fromkeys(label for kind in self._kinds.values() for label in kind.labels))

    def ids(self, words: tuple[str, ...]) -> NDArray[np.int32]:
        """Token ids of words."""
        return np.array([self._id_of[word] for word in words], np.int32)

    def dictionary(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Ids of native words and, place by place, of their translations; empty without rows of translation."""
        kind = self._kinds.get("translation")
        if not isinstance(kind, Translation):
            return np.zeros(0, np.int32), np.zeros(0, np.int32)
        ids = self.ids(kind.words)
        return ids[kind.dictionary[0]], ids[kind.dictionary[1]]

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[NDArray[np.float32]]:
        shares = np.array([getattr(self._options, name) for name in self._kinds])
        shares /= shares.sum()
        kind_B = rng.choice(len(shares), BLOCK_ROWS, p=shares)
        shape = (BLOCK_ROWS, self.n_ctx + 1)
        tokens, labels, nats = np.zeros(shape, np.int32), np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
        nats[:, 1] = -np.log(shares[kind_B])
        for number, (name, kind) in enumerate(self._kinds.items()):
            here = kind_B == number
            tokens[here, 1] = self._id_of[_mark(name)]
            if here.any():
                body = kind.rows(rng, int(here.sum()), self.n_ctx - 1, is_held_out)
                label_numbers = [0, *(1 + self.label_names.index(label) for label in kind.labels)]
                tokens[here, 2:] = self.ids(kind.words)[body.tokens]
                labels[here, 2:] = np.array(label_numbers, np.uint8)[body.labels]
                nats[here, 2:] = body.nats
        return Block(tokens, labels, nats)

    @property
    def _definition(self) -> dict[str, Any]:
        return {"corpus": "mixture", "version": VERSION, "words": self.words, **asdict(self._options)}


def _mark(kind: str) -> str:
    """What says of which kind a row is."""
    return f"{kind}:"


CORPUS = CorpusKind(open=MixtureCorpus, options=MixtureOptions)
