"""The ``stories`` corpus: little stories in which each behaviour of the introductory article has its place.

Rows are made on demand from (seed, row id). What a story makes anew (names, sums, the words of its glossary) is split
by a fixed hash: held-out rows draw from the held-out quarter, which training rows never do. Every token's probability
under the grammar (``stories_grammar.py``) is known, and with it the loss that no model can beat.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from icl_jax.config import Config
from icl_jax.config.corpora import CorpusKind
from icl_jax.data.corpora import stories_grammar as words
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block
from icl_jax.data.corpora.held_out_class import N_CLASSES, held_out_class, pick
from icl_jax.data.corpora.stories_grammar import GRAMMAR
from icl_jax.data.corpora.words import WordsCorpus
from icl_jax.data.corpus import BOS, Progress

VERSION = 1
"""Goes up whenever the rows of a given config change."""

LABELS = ("bigram", "known_name", "novel_name", "repeated_sum", "new_sum", "glossary")

_PERSON_A, _PERSON_B, _TITLED, _SUM_1, _SUM_2, _GLOSSARY, _NOTHING = range(7)


class _Slots(NamedTuple):
    """What stories fill their slots with, [story, slot]."""

    tokens: NDArray[np.int16]
    loss_nats: NDArray[np.float32]
    """-log P of the token, where it is first said, among those that could stand there."""


def _fill_slots(rng: np.random.Generator, n: int, is_held_out: bool) -> _Slots:
    """Slots of n stories. Asserts the split for every name, sum and glossary."""
    tokens = np.empty((n, len(words.SLOTS)), np.int16)
    loss = np.zeros((n, len(words.SLOTS)), np.float32)
    column = {slot: i for i, slot in enumerate(words.SLOTS)}

    def put(slot: str, list_: tuple[str, ...], index: NDArray[np.integer], loss_nats: ArrayLike) -> None:
        tokens[:, column[slot]] = GRAMMAR.ids(list_)[index]
        loss[:, column[slot]] = loss_nats

    def uniform(slot: str, list_: tuple[str, ...]) -> NDArray[np.int64]:
        index = rng.integers(0, len(list_), n)
        put(slot, list_, index, np.log(len(list_)))
        return index

    def random_orders(list_: tuple[str, ...]) -> NDArray[np.intp]:
        return rng.random((n, len(list_)), np.float32).argsort(axis=1)

    uniform("title", words.TITLES)
    uniform("surname", words.SURNAMES)

    # Two names out of different syllables, so that each syllable of a story has one that follows it.
    first_A = uniform("A0", words.FIRST_SYLLABLES)
    n_first = len(words.FIRST_SYLLABLES)
    first_B = (first_A + rng.integers(1, n_first, n)) % n_first
    put("B0", words.FIRST_SYLLABLES, first_B, np.log(n_first - 1))
    order = random_orders(words.SYLLABLES)
    n_taken = 0
    for name, first in (("A", first_A), ("B", first_B)):
        for place in (1, 2):
            put(f"{name}{place}", words.SYLLABLES, order[:, n_taken], np.log(len(words.SYLLABLES) - n_taken))
            n_taken += 1
        second, third = order[:, n_taken - 2], order[:, n_taken - 1]
        class_ = held_out_class(0, first, second, third)
        where, log_n = pick(order, n_taken, class_, is_held_out)
        last = order[np.arange(n), where]
        put(f"{name}3", words.SYLLABLES, last, log_n)
        assert ((last % N_CLASSES == class_) == is_held_out).all()
        # Syllables before the one picked stay in play for the other name.
        order[np.arange(n), where] = order[:, n_taken]
        order[:, n_taken] = last
        n_taken += 1

    # Two sums of different first numbers.
    addends = words.NUMBERS[: words.N_ADDENDS]
    first_1 = uniform("a1", addends)
    first_2 = (first_1 + rng.integers(1, words.N_ADDENDS, n)) % words.N_ADDENDS
    put("a2", addends, first_2, np.log(words.N_ADDENDS - 1))
    n_per_class = words.N_ADDENDS // N_CLASSES
    for number, first in ((1, first_1), (2, first_2)):
        class_ = held_out_class(1, first)
        other = class_ if is_held_out else (class_ + rng.integers(1, N_CLASSES, n)) % N_CLASSES
        second = N_CLASSES * rng.integers(0, n_per_class, n) + other
        n_choices = n_per_class * (1 if is_held_out else N_CLASSES - 1)
        put(f"b{number}", addends, second, np.log(n_choices))
        put(f"c{number}", words.NUMBERS, first + second, 0.0)
        assert ((second % N_CLASSES == class_) == is_held_out).all()

    language = uniform("language", words.LANGUAGES)
    native, foreign = random_orders(words.NATIVE), random_orders(words.FOREIGN)
    for i in range(words.N_PAIRS_GLOSSED):
        put(f"native{i + 1}", words.NATIVE, native[:, i], np.log(len(words.NATIVE) - i))
        class_ = held_out_class(2, language, native[:, i])
        where, log_n = pick(foreign, i, class_, is_held_out)
        word = foreign[np.arange(n), where]
        put(f"foreign{i + 1}", words.FOREIGN, word, log_n)
        assert ((word % N_CLASSES == class_) == is_held_out).all()
        foreign[np.arange(n), where] = foreign[:, i]
        foreign[:, i] = word
    return _Slots(tokens, loss)


def _choose(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> NDArray[np.intp]:
    templates, probs = GRAMMAR.of_kind(kind)
    cdf = np.cumsum(probs)
    # Rounding may leave the last entry of the cumulative sum just below 1.
    return templates[np.minimum(np.searchsorted(cdf, rng.random(shape), side="right"), len(cdf) - 1)]


class _Symbols(NamedTuple):
    """Tables over GRAMMAR.symbols; slots that are said as one belong to one group."""

    group: NDArray[np.int8]
    label_first: NDArray[np.uint8]
    label_again: NDArray[np.uint8]
    starts_group: NDArray[np.bool_]
    list_start: NDArray[np.int16]
    """Token id of the first word of a list, for its symbol; 0 for others."""
    list_size: NDArray[np.int16]
    """Words of a list, for its symbol; 1 for others."""


@lru_cache(maxsize=1)
def _symbols() -> _Symbols:
    n = len(GRAMMAR.symbols)
    table = _Symbols(
        np.full(n, _NOTHING, np.int8), np.zeros(n, np.uint8), np.zeros(n, np.uint8), np.zeros(n, np.bool_),
        np.zeros(n, np.int16), np.ones(n, np.int16),
    )  # fmt: skip

    def put(slots: str, group: int, labelled: str = "", first: str = "", again: str = "") -> None:
        numbers = [GRAMMAR.symbol_of[slot] for slot in slots.split()]
        table.group[numbers] = group
        table.starts_group[numbers[0]] = True
        for slot in labelled.split():
            table.label_first[GRAMMAR.symbol_of[slot]] = LABELS.index(first) + 1 if first else 0
            table.label_again[GRAMMAR.symbol_of[slot]] = LABELS.index(again) + 1

    put("A0 A1 A2 A3", _PERSON_A, "A1 A2 A3", again="novel_name")
    put("B0 B1 B2 B3", _PERSON_B, "B1 B2 B3", again="novel_name")
    put("title surname", _TITLED, "surname", again="known_name")
    put("a1 b1 c1", _SUM_1, "c1", first="new_sum", again="repeated_sum")
    put("a2 b2 c2", _SUM_2, "c2", first="new_sum", again="repeated_sum")
    foreign = "foreign1 foreign2 foreign3"
    put(f"language native1 native2 native3 {foreign}", _GLOSSARY, foreign, again="glossary")
    for labels in (table.label_first, table.label_again):
        labels[GRAMMAR.partner_symbol] = LABELS.index("bigram") + 1
    for name, list_ in words.LISTS.items():
        table.list_start[GRAMMAR.symbol_of[name]] = GRAMMAR.id_of[list_[0]]
        table.list_size[GRAMMAR.symbol_of[name]] = len(list_)
    return table


def _stories_per_row(n_ctx: int) -> int:
    """As many of the shortest stories as could begin in a row."""
    lengths = [len(template.symbols) for template in GRAMMAR.templates]

    def shortest(kind: str) -> int:
        return min(lengths[i] for i in GRAMMAR.of_kind(kind)[0])

    story = 1 + shortest("opening") + words.MIN_BODY * shortest("body after glossary") + shortest("closing")
    return -(-(n_ctx + 1) // story)


class _Sentences(NamedTuple):
    """The sentences of stories, [story, sentence], and what they are made of."""

    templates: NDArray[np.intp]
    states: NDArray[np.intp]
    said_before: NDArray[np.bool_]
    """[story, sentence, group]: said in a sentence before this one."""


def _choose_sentences(rng: np.random.Generator, n: int) -> _Sentences:
    has_glossary = rng.random(n) < words.GLOSSARY_PROB
    n_body = rng.integers(words.MIN_BODY, words.MAX_BODY + 1, n)
    shape = (n, words.MAX_BODY)
    body = np.where(has_glossary[:, None], _choose(rng, "body after glossary", shape), _choose(rng, "body", shape))
    number = np.arange(words.MAX_BODY)
    body[number >= n_body[:, None]] = GRAMMAR.empty
    glossary = np.where(has_glossary, _choose(rng, "glossary", (n,)), GRAMMAR.empty)
    templates = np.column_stack([glossary, _choose(rng, "opening", (n,)), body, _choose(rng, "closing", (n,))])

    states = np.empty(templates.shape, np.intp)
    states[:, 0] = 0
    states[:, 1] = has_glossary
    states[:, 2:-1] = words.body_state(0, False) + 2 * number + has_glossary[:, None]
    states[:, -1] = words.body_state(0, False) + 2 * n_body + has_glossary

    mentions = np.zeros((len(GRAMMAR.templates), _NOTHING + 1), np.int8)
    for row, template in zip(mentions, GRAMMAR.templates, strict=True):
        row[[_symbols().group[GRAMMAR.symbol_of[symbol]] for symbol in template.symbols]] = 1
    said = mentions[templates]
    return _Sentences(templates, states, said.cumsum(axis=1) > said)


def make_rows(rng: np.random.Generator, n_rows: int, n_ctx: int, is_held_out: bool) -> Block[NDArray[np.float32]]:
    """Rows of whole stories, BOS before each, the last one of a row cut off."""
    n = n_rows * _stories_per_row(n_ctx)
    slots, sentences = _fill_slots(rng, n, is_held_out), _choose_sentences(rng, n)
    table, first_slot, first_list = _symbols(), GRAMMAR.first_slot, GRAMMAR.first_list

    # All tokens of all stories in one line each: the BOS, then the sentences' symbols.
    symbol = GRAMMAR.template_symbols[sentences.templates]
    is_there = symbol >= 0
    story, sentence, place = np.nonzero(is_there)
    symbol = symbol[is_there]
    token = np.where(symbol < first_slot, symbol, 0).astype(np.int16)
    loss = GRAMMAR.symbol_loss_nats[sentences.states[story, sentence], sentences.templates[story, sentence], place]

    is_again = sentences.said_before[story, sentence, table.group[symbol]]
    is_slot = (symbol >= first_slot) & (symbol < first_list)
    slot = symbol[is_slot] - first_slot
    token[is_slot] = slots.tokens[story[is_slot], slot]
    loss[is_slot] += np.where(is_again[is_slot], 0, slots.loss_nats[story[is_slot], slot])
    # Which of the two sums comes first cannot be told apart, and the first number is then one of all of them.
    either = sentences.said_before[story, sentence][:, [_SUM_1, _SUM_2]].any(axis=1)
    is_first_sum = table.starts_group[symbol] & np.isin(table.group[symbol], (_SUM_1, _SUM_2)) & ~either
    loss[is_first_sum] += (
        np.float32(np.log(1 / 2) + np.log(words.N_ADDENDS))
        - slots.loss_nats[story[is_first_sum], symbol[is_first_sum] - first_slot]
    )

    is_list = (symbol >= first_list) & (symbol < GRAMMAR.partner_symbol)
    size = table.list_size[symbol[is_list]]
    token[is_list] = table.list_start[symbol[is_list]] + (rng.random(len(size), np.float32) * size).astype(np.int16)
    loss[is_list] += np.log(size.astype(np.float32))

    partner = np.flatnonzero(symbol == GRAMMAR.partner_symbol)
    adjective = token[partner - 1] - GRAMMAR.id_of[next(iter(words.PAIRS))]
    n_nouns = len(words.PAIRS)
    is_other = rng.random(len(partner)) >= words.PARTNER_PROB
    noun = np.where(is_other, adjective + rng.integers(1, n_nouns, len(partner)), adjective) % n_nouns
    token[partner] = GRAMMAR.ids(tuple(words.PAIRS.values()))[noun]
    other_loss = -np.log((1 - words.PARTNER_PROB) / (n_nouns - 1))
    loss[partner] += np.where(is_other, other_loss, -np.log(words.PARTNER_PROB)).astype(np.float32)

    label = np.where(is_again, table.label_again[symbol], table.label_first[symbol])
    return _pack(story, token, label, loss, n_rows, n_ctx)


def _pack(
    story: NDArray[np.intp],
    token: NDArray[np.int16],
    label: NDArray[np.uint8],
    loss: NDArray[np.float32],
    n_rows: int,
    n_ctx: int,
) -> Block[NDArray[np.float32]]:
    """Rows from the stories' tokens, which lie story after story, and as many stories for each row."""
    n_stories = story[-1] + 1
    n_each = n_stories // n_rows
    row = story // n_each
    n_before = np.searchsorted(row, np.arange(n_rows))
    # A story's tokens stand behind the BOS of their own story and of those before it in the row.
    position = np.arange(len(token)) - n_before[row] + story % n_each + 1
    is_kept = position <= n_ctx
    row, position = row[is_kept], position[is_kept]
    shape = (n_rows, n_ctx + 1)
    tokens, labels, losses = np.full(shape, GRAMMAR.id_of[BOS], np.int32), np.zeros(shape, np.uint8), np.zeros(shape)
    tokens[row, position], labels[row, position], losses[row, position] = token[is_kept], label[is_kept], loss[is_kept]
    block = Block(tokens, labels, losses.astype(np.float32))
    for array in block:
        array.setflags(write=False)
    return block


def label_floor_nats() -> dict[str, float]:
    """The lowest mean loss of each label's tokens, nats: what the grammar leaves open.

    Nothing but the noun after an adjective is left to chance: with p = PARTNER_PROB and n nouns that is
    ``-p log p - (1 - p) log((1 - p) / (n - 1))``. All else was said before in the story, or is arithmetic.
    """
    p, n_others = words.PARTNER_PROB, len(words.PAIRS) - 1
    floors = dict.fromkeys(LABELS, 0.0)
    floors["bigram"] = float(-p * np.log(p) - (1 - p) * np.log((1 - p) / n_others))
    return floors


class StoriesCorpus(WordsCorpus):
    """A row is whole stories, the last one cut off. Hidden: -log P of each token under the grammar, nats."""

    bos_id = GRAMMAR.id_of[BOS]
    label_names = LABELS

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        """Raises UserError if ``model.vocab_size`` is less than the number of words."""
        super().__init__(config)
        self._set_words(GRAMMAR.words, config)

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[NDArray[np.float32]]:
        return make_rows(rng, BLOCK_ROWS, self.n_ctx, is_held_out)

    @property
    def _definition(self) -> dict[str, Any]:
        return {"corpus": "stories", "version": VERSION, "words": GRAMMAR.words}


CORPUS = CorpusKind(open=StoriesCorpus)
