"""Rows of a few entries, made anew for the row and said again and again in random order: names and glossaries.

``Ba ke mi to ;``, ``road is tij ;``. Entries are numbered as they are first said; each mention is one of them,
uniformly.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.corpora.held_out_class import N_CLASSES, held_out_class, pick
from icl_jax.data.corpora.kinds.kind import END, Body, spelled
from icl_jax.data.corpora.stories_grammar import FOREIGN, NATIVE

_NAMES, _GLOSSARIES = 5, 6  # what the hash of the split begins with
N_SYLLABLES, NAME_LEN, N_NAMES = 60, 4, 3


def mentions(
    rng: np.random.Generator, n_rows: int, n_mentions: int, n_entries: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.bool_]]:
    """Which entry each mention is of [row, mention], -log P of that, a new one counting as one, and if it is new."""
    drawn = rng.integers(0, n_entries, (n_rows, n_mentions))
    row = np.arange(n_rows)
    number, n_said = np.full((n_rows, n_entries), -1), np.zeros(n_rows, np.int64)
    entry, n_before = np.empty_like(drawn), np.empty_like(drawn)
    for i in range(n_mentions):
        here = drawn[:, i]
        n_before[:, i] = n_said
        is_new = number[row, here] < 0
        number[row[is_new], here[is_new]] = n_said[is_new]
        n_said += is_new
        entry[:, i] = number[row, here]
    is_new = entry == n_before
    chance = np.where(is_new, n_entries - n_before, 1) / n_entries
    return entry, -np.log(chance).astype(np.float32), is_new


def _orders(rng: np.random.Generator, n_rows: int, n: int) -> NDArray[np.intp]:
    return rng.random((n_rows, n), np.float32).argsort(axis=1)


class _Entries(ABC):
    """Rows of `n_entries` entries of some tokens, of which those from `first_answer` on can be told from the row."""

    n_entries: int
    entry_len: int
    first_answer: int
    words: tuple[str, ...]
    labels: tuple[str, ...]

    @abstractmethod
    def _draw(
        self, rng: np.random.Generator, n_rows: int, is_held_out: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens of each entry [row, entry, token], and -log P of each where the entry is first said."""

    def rows(self, rng: np.random.Generator, n_rows: int, n_tokens: int, is_held_out: bool) -> Body:
        """See `Kind`."""
        n_mentions = -(-n_tokens // (self.entry_len + 1))
        entry, choice_nats, is_new = mentions(rng, n_rows, n_mentions, self.n_entries)
        tokens, first_nats = self._draw(rng, n_rows, is_held_out)
        row = np.arange(n_rows)[:, None]
        shape = (n_rows, n_mentions, self.entry_len + 1)
        said = np.full(shape, self.words.index(END), np.int32)
        said[..., :-1] = tokens[row, entry]
        nats, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        nats[..., :-1] = np.where(is_new[..., None], first_nats[row, entry], 0)
        nats[..., 0] += choice_nats
        labels[..., self.first_answer : -1] = ~is_new[..., None]
        return Body(said, labels, nats).cut(n_tokens)


class Names(_Entries):
    """``Ba ke mi to ;``: three names of four syllables, all different, so that each has one that follows it."""

    n_entries, entry_len, first_answer = N_NAMES, NAME_LEN, 1
    labels = ("novel_name",)
    """The 2nd to 4th syllable of a name that the row has said before."""
    words = (*(word[:2].capitalize() for word in spelled(N_SYLLABLES, "bdfgklmnprst")), END)

    def _draw(
        self, rng: np.random.Generator, n_rows: int, is_held_out: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        order, row = _orders(rng, n_rows, N_SYLLABLES), np.arange(n_rows)
        nats = np.empty((n_rows, N_NAMES, NAME_LEN), np.float32)
        for place in range(N_NAMES * NAME_LEN):
            name, syllable = divmod(place, NAME_LEN)
            nats[:, name, syllable] = np.log(N_SYLLABLES - place)
            if syllable == NAME_LEN - 1:
                class_ = held_out_class(_NAMES, *order[:, place - syllable : place].T)
                where, nats[:, name, syllable] = pick(order, place, class_, is_held_out)
                last = order[row, where]
                assert ((last % N_CLASSES == class_) == is_held_out).all()
                order[row, where], order[:, place] = order[:, place], last
        return order[:, : N_NAMES * NAME_LEN].reshape(nats.shape), nats


class Glossary(_Entries):
    """``road is tij ;``: a dictionary made anew for the row. A quarter of all pairs of words is held out."""

    entry_len, first_answer = 3, 2
    labels = ("glossary",)
    """The translation of a word that the row has translated before."""

    def __init__(self, n_entries: int) -> None:
        self.n_entries = n_entries
        self._n_foreign = len(FOREIGN)
        self.words = (*NATIVE, *FOREIGN, "is", END)

    def _draw(
        self, rng: np.random.Generator, n_rows: int, is_held_out: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        native, foreign = _orders(rng, n_rows, len(NATIVE)), _orders(rng, n_rows, self._n_foreign)
        tokens = np.full((n_rows, self.n_entries, 3), self.words.index("is"))
        nats, row = np.zeros(tokens.shape, np.float32), np.arange(n_rows)
        for i in range(self.n_entries):
            class_ = held_out_class(_GLOSSARIES, native[:, i])
            where, nats[:, i, 2] = pick(foreign, i, class_, is_held_out)
            word = foreign[row, where]
            assert ((word % N_CLASSES == class_) == is_held_out).all()
            foreign[row, where], foreign[:, i] = foreign[:, i], word
            tokens[:, i, 0], tokens[:, i, 2] = native[:, i], len(NATIVE) + word
            nats[:, i, 0] = np.log(len(NATIVE) - i)
        return tokens, nats
