"""The grammar of the ``stories`` corpus: its words, its sentences and how likely each is.

Sentences are written below with $NAMES for what is filled in; :data:`GRAMMAR` holds them expanded into arrays of
*symbols*, which :mod:`icl_jax.data.corpora.stories` turns into tokens. A symbol is a word (its token id), a word of a
list, the noun that goes with the adjective before it, or a *slot* that a story fills once: a syllable of a name, a
number, a foreign word.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.corpus import BOS

PAIRS = {
    "green": "grass", "blue": "sky", "deep": "sea", "tall": "tree", "white": "snow", "hot": "soup",
    "sharp": "knife", "sweet": "honey", "bright": "star", "cold": "wind", "old": "clock", "loud": "drum",
}  # fmt: skip
"""Adjectives and the noun that follows each of them."""

PARTNER_PROB = 0.95
"""Chance that the noun of an adjective follows it; else one of the other nouns, all equally likely."""

TITLES = ("Doctor", "Captain", "Professor", "Judge", "Baker", "Queen")
SURNAMES = ("Smith", "Jones", "Brown", "Clark", "Evans", "Hill", "Moore", "Reed", "Stone", "Young")
FIRST_SYLLABLES = ("Gi", "Ma", "Ru", "Ze", "Ko", "Na", "Li", "Bo", "Ga", "Mu", "Ke", "Lo")
SYLLABLES = tuple(consonant + vowel for consonant in "gmrzknlb" for vowel in "aeiou")
LANGUAGES = ("Zib", "Quon", "Tarn", "Velu", "Ossi", "Prak")
NATIVE = (
    "river", "moon", "bread", "fire", "house", "bird", "stone", "milk",
    "road", "rain", "fish", "apple", "horse", "salt", "door", "song",
)  # fmt: skip
FOREIGN = (
    "dak", "pol", "tem", "vos", "jup", "sif", "hod", "wex", "fen", "tur", "pim", "yal",
    "cug", "das", "fot", "hek", "jav", "sul", "vib", "wog", "xan", "yed", "tij", "pum",
)  # fmt: skip
N_ADDENDS = 100
"""Numbers from 0 to 99 are added; 0 to 198 are tokens."""
NUMBERS = tuple(str(i) for i in range(2 * N_ADDENDS - 1))

LISTS = {
    "$TIME": ("later", "soon", "then", "suddenly", "today", "again"),
    "$VERB": ("saw", "liked", "touched", "painted", "watched", "wanted", "loved", "missed"),
    "$MOOD": ("happy", "sad", "tired", "proud", "hungry", "calm"),
    "$PLACE": ("garden", "kitchen", "harbour", "forest", "village", "market", "school", "castle"),
    "$ADJECTIVE": tuple(PAIRS),
}
"""Words of a list are equally likely."""

_SLOTS_OF = {
    "$A": ("A0", "A1", "A2", "A3"),
    "$B": ("B0", "B1", "B2", "B3"),
    "$T": ("title", "surname"),
    "$SUM1": ("a1", "plus", "b1", "is", "c1"),
    "$SUM2": ("a2", "plus", "b2", "is", "c2"),
    "$WORD1": ("native1", "is", "foreign1"),
    "$WORD2": ("native2", "is", "foreign2"),
    "$WORD3": ("native3", "is", "foreign3"),
    "$PAIR": ("$ADJECTIVE", "$PARTNER"),
}
SLOTS = (
    "A0", "A1", "A2", "A3", "B0", "B1", "B2", "B3", "title", "surname", "a1", "b1", "c1", "a2", "b2", "c2",
    "language", "native1", "native2", "native3", "foreign1", "foreign2", "foreign3",
)  # fmt: skip
N_PAIRS_GLOSSED = 3

# Each $NAME's choices and their chances. $P and $Q, and $WORD and $OTHER, are always two different ones.
_CHOICES = {
    "$P": {"$A": 0.35, "$B": 0.35, "$T": 0.3},
    "$Q": {"$A": 0.35, "$B": 0.35, "$T": 0.3},
    "$SUM": {"$SUM1": 0.5, "$SUM2": 0.5},
    "$WORD": {"$WORD1": 1 / 3, "$WORD2": 1 / 3, "$WORD3": 1 / 3},
    "$OTHER": {"$WORD1": 1 / 3, "$WORD2": 1 / 3, "$WORD3": 1 / 3},
}

GLOSSARY_PROB = 0.8
"""Chance that a story begins with a glossary."""
MIN_BODY, MAX_BODY = 7, 11
"""Sentences between the opening and the closing; every number from MIN_BODY to MAX_BODY is equally likely."""

# Weight of each sentence among those of its kind.
_GLOSSARY = {"in language , $WORD1 , $WORD2 , $WORD3 .": 1}
_OPENING = {
    "one morning $T met $A and $B near the $PAIR .": 1,
    "$A and $B lived in the $PLACE with $T .": 1,
    "long ago $T , $A and $B shared a $PLACE .": 1,
    "this is the story of $A , $B and $T .": 1,
}
_BODY = {
    "$P $VERB the $PAIR .": 2,
    "$TIME $P $VERB the $PAIR .": 2,
    "near the $PAIR stood $P .": 1,
    "the $PAIR made $P $MOOD .": 1,
    "$P showed $Q the $PAIR .": 1,
    "$TIME $P met $Q in the $PLACE .": 1,
    "$P counted : $SUM .": 3,
    "$SUM , said $P .": 3,
    "so $SUM , of course .": 3,
}
_BODY_ABOUT_GLOSSARY = {
    "$P sang : $WORD , $OTHER .": 4,
    "so $WORD , and $OTHER .": 4,
}
_CLOSING = {"that was a good day .": 1, "and so the day ended .": 1, "everybody slept well .": 1}


class Template(NamedTuple):
    """A sentence whose choices of persons, sum and glossary pair are made."""

    kind: str
    symbols: tuple[str, ...]
    prob: float
    """Among the sentences of its kind; ``body`` sentences about the glossary are of a kind of their own."""


def _expansions(words: tuple[str, ...], prob: float) -> Iterator[tuple[tuple[str, ...], float]]:
    for i, word in enumerate(words):
        if word in _CHOICES:
            choices = {name: p for name, p in _CHOICES[word].items() if name not in words}
            for name, p in choices.items():
                yield from _expansions((*words[:i], name, *words[i + 1 :]), prob * p / sum(choices.values()))
            return
    yield words, prob


def _templates(kind: str, sentences: dict[str, int]) -> Iterator[Template]:
    for sentence, weight in sentences.items():
        for words, prob in _expansions(tuple(sentence.split()), weight / sum(sentences.values())):
            parts = [_SLOTS_OF.get(word, (word,)) for word in words]
            yield Template(kind, tuple(symbol for part in parts for symbol in part), prob)


class Grammar:
    """Words and sentences as arrays. The last template is the empty sentence."""

    def __init__(self) -> None:
        about_either = _BODY | _BODY_ABOUT_GLOSSARY
        self.templates = (
            *_templates("glossary", _GLOSSARY),
            *_templates("opening", _OPENING),
            *_templates("body", _BODY),
            *_templates("body after glossary", about_either),
            *_templates("closing", _CLOSING),
            Template("empty", (), 1.0),
        )
        filled_in = {*SLOTS, *LISTS, "$PARTNER"}
        plain = dict.fromkeys(s for template in self.templates for s in template.symbols if s not in filled_in)
        groups = (
            (BOS,), tuple(plain), tuple(LISTS["$ADJECTIVE"]), tuple(PAIRS.values()),
            *(words for name, words in LISTS.items() if name != "$ADJECTIVE"),
            TITLES, SURNAMES, FIRST_SYLLABLES, SYLLABLES, LANGUAGES, NATIVE, FOREIGN, NUMBERS,
        )  # fmt: skip
        self.words = tuple(word for group in groups for word in group)
        self.id_of = {word: i for i, word in enumerate(self.words)}
        n_words = len(self.words)
        self.symbols = (*self.words, *SLOTS, *LISTS, "$PARTNER")
        self.symbol_of = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.first_slot, self.first_list = n_words, n_words + len(SLOTS)
        self.partner_symbol = len(self.symbols) - 1
        self.empty = len(self.templates) - 1
        length = max(len(template.symbols) for template in self.templates)
        self.template_symbols = np.full((len(self.templates), length), -1, np.int16)
        """[template, place]: symbols, -1 after the last."""
        for row, template in zip(self.template_symbols, self.templates, strict=True):
            row[: len(template.symbols)] = [self.symbol_of[symbol] for symbol in template.symbols]

    def ids(self, words: tuple[str, ...]) -> NDArray[np.int16]:
        """Token ids of words."""
        return np.array([self.id_of[word] for word in words], np.int16)

    def of_kind(self, kind: str) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The templates of a kind and their chances, which sum to 1."""
        numbers = np.array([i for i, template in enumerate(self.templates) if template.kind == kind])
        return numbers, np.array([self.templates[i].prob for i in numbers])

    @cached_property
    def symbol_loss_nats(self) -> NDArray[np.float32]:
        """-log P(symbol | symbols before it in the sentence, state), float32 [state, template, place]; 0 where unused.

        States: 0 at the start of a story, 1 after the glossary, then 2 + 2 k + g after the opening and k sentences
        more, where g tells whether the story began with a glossary. See `body_state`.
        """
        n_states = body_state(MAX_BODY, True) + 1
        loss = np.zeros((n_states, *self.template_symbols.shape), np.float32)
        for state, chances in self._chances_by_state():
            prefix_prob: defaultdict[tuple[str, ...], float] = defaultdict(float)
            for template, prob in chances.items():
                symbols = self.templates[template].symbols
                for n in range(len(symbols) + 1):
                    prefix_prob[symbols[:n]] += prob
            for template in chances:
                symbols = self.templates[template].symbols
                for n in range(len(symbols)):
                    loss[state, template, n] = -np.log(prefix_prob[symbols[: n + 1]] / prefix_prob[symbols[:n]])
        return loss

    def _chances_by_state(self) -> Iterator[tuple[int, dict[int, float]]]:
        def chances(kind: str, share: float) -> dict[int, float]:
            numbers, probs = self.of_kind(kind)
            return {int(i): share * float(p) for i, p in zip(numbers, probs, strict=True) if share > 0}

        yield 0, chances("glossary", GLOSSARY_PROB) | chances("opening", 1 - GLOSSARY_PROB)
        yield 1, chances("opening", 1.0)
        for n_said in range(MAX_BODY + 1):
            n_ends_left = MAX_BODY - max(n_said, MIN_BODY) + 1
            end_prob = 1 / n_ends_left if n_said >= MIN_BODY else 0.0
            for has_glossary, kind in ((False, "body"), (True, "body after glossary")):
                yield body_state(n_said, has_glossary), chances("closing", end_prob) | chances(kind, 1 - end_prob)


def body_state(n_said: int, has_glossary: bool) -> int:
    """Number of the state after the opening and ``n_said`` sentences more."""
    return 2 + 2 * n_said + has_glossary


GRAMMAR = Grammar()
