"""Rows of pairs and what a rule makes of them: sums, rules that only examples tell, and patterns of classes.

``4 8 + 7 6 = 1 2 4 ;``, ``july frog :3 ;``. A pair is drawn among those of the split, uniformly, or said again: one of
the earlier examples of the row, uniformly.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.corpora.kinds.kind import END, Body, is_unseen
from icl_jax.data.corpora.patterns import CLASSES

_SUMS, _LINES = 3, 4  # what the hash of the split begins with

Numbers = NDArray[np.int64]


class Pairs:
    """Pairs of numbers below ``base ** width``, a quarter of them held out."""

    def __init__(self, base: int, width: int, is_held_out: NDArray[np.bool_], again: float) -> None:
        self.base, self.width, self.again = base, width, again
        self.n = base**width
        self._is_held_out = is_held_out.reshape(-1)
        self._of_split = {split: np.flatnonzero(self._is_held_out == split) for split in (False, True)}

    def draw(
        self, rng: np.random.Generator, n_rows: int, n_examples: int, is_held_out: bool
    ) -> tuple[Numbers, Numbers, NDArray[np.float32], NDArray[np.bool_]]:
        """Both numbers [row, example], -log P of each of their 2 x width digits, and which pair was said before."""
        ours = self._of_split[is_held_out]
        pair = ours[rng.integers(0, len(ours), (n_rows, n_examples))]
        number = np.arange(n_examples)
        is_again = (rng.random(pair.shape) < self.again) & (number > 0)
        source = (rng.random(pair.shape) * number).astype(np.int64)
        for i in range(1, n_examples):
            pair[:, i] = np.where(is_again[:, i], pair[np.arange(n_rows), source[:, i]], pair[:, i])
        assert (self._is_held_out[pair] == is_held_out).all()

        probs = [np.ones(pair.shape)]
        is_earlier = np.tri(n_examples, k=-1, dtype=bool)
        share_again = np.where(number > 0, self.again, 0.0)
        for n_digits in range(1, 2 * self.width + 1):
            rest = self.base ** (2 * self.width - n_digits)
            begun = pair // rest
            n_new = np.bincount(ours // rest, minlength=self.base**n_digits)[begun]
            alike = (begun[:, :, None] == begun[:, None, :]) & is_earlier
            n_said = alike.sum(axis=2)
            probs.append((1 - share_again) * n_new / len(ours) + share_again * n_said / np.maximum(number, 1))
        nats = -np.diff(np.log(np.stack(probs, axis=-1)), axis=-1).astype(np.float32)
        return pair // self.n, pair % self.n, nats, alike.any(axis=2)


def digits(number: Numbers, base: int, width: int) -> Numbers:
    """[..., width] digits, the highest first."""
    return number[..., None] // base ** np.arange(width - 1, -1, -1) % base


def backwards(a: Numbers, n_digits: int) -> Numbers:
    """The number whose decimal digits, as many as `n_digits`, stand in the other order."""
    return np.asarray((digits(a, 10, n_digits) * 10 ** np.arange(n_digits)).sum(axis=-1))


RULES = ("plus", "minus", "larger", "reversed")
"""a + b; the difference of the two, without a sign; the larger of the two; the digits of a backwards."""


class Sums:
    """``a + b = c ;``. Numbers have zeros in front: all of `n_digits` decimal digits, results of one more."""

    def __init__(self, n_digits: int, as_digits: bool, again: float) -> None:
        self._base = 10 if as_digits else 10**n_digits
        self._width = n_digits if as_digits else 1
        self._n_digits, self._result_width = n_digits, n_digits + 1 if as_digits else 1
        self._numbers = tuple(str(i) for i in range(10 if as_digits else 2 * 10**n_digits - 1))
        self._again = again

    sign = "+"
    labels: tuple[str, ...] = ("new_sum", "repeated_sum")
    """Of a pair that the row has not said, in held-out rows one that training never had; and of one that it has."""

    @property
    def words(self) -> tuple[str, ...]:
        return (*self._numbers, self.sign, "=", END)

    @cached_property
    def _pairs(self) -> Pairs:
        a, b = np.ogrid[: 10**self._n_digits, : 10**self._n_digits]
        # A pair is held out in both orders.
        return Pairs(self._base, self._width, is_unseen(_SUMS, np.minimum(a, b), np.maximum(a, b)), self._again)

    @property
    def _example_len(self) -> int:
        return 2 * self._width + self._result_width + 3

    def results(self, a: Numbers, b: Numbers) -> Numbers:
        """[rule, row, example]: what each rule that the row may follow makes of the pairs."""
        return (a + b)[None]

    def _label(self, rule: Numbers, said_before: NDArray[np.bool_]) -> NDArray[np.uint8]:
        return (1 + said_before).astype(np.uint8)

    def rows(self, rng: np.random.Generator, n_rows: int, n_tokens: int, is_held_out: bool) -> Body:
        """See `Kind`."""
        n_examples = -(-n_tokens // self._example_len)
        a, b, pair_nats, said_before = self._pairs.draw(rng, n_rows, n_examples, is_held_out)
        results = self.results(a, b)
        rule = rng.integers(0, len(results), n_rows)
        result, result_nats = self._follow(results, rule)
        shape = (n_rows, n_examples, self._example_len)
        tokens, labels, nats = np.empty(shape, np.int32), np.zeros(shape, np.uint8), np.zeros(shape, np.float32)
        w = self._width
        sign, equals, end = (self.words.index(word) for word in (self.sign, "=", END))
        tokens[..., :w], tokens[..., w] = digits(a, self._base, w), sign
        tokens[..., w + 1 : 2 * w + 1], tokens[..., 2 * w + 1] = digits(b, self._base, w), equals
        answer = slice(2 * w + 2, 2 * w + 2 + self._result_width)
        tokens[..., answer], tokens[..., -1] = result, end
        nats[..., :w], nats[..., w + 1 : 2 * w + 1] = pair_nats[..., :w], pair_nats[..., w:]
        nats[..., answer] = result_nats
        labels[..., answer] = self._label(rule, said_before)[..., None]
        return Body(tokens, labels, nats).cut(n_tokens)

    def _follow(self, results: Numbers, rule: Numbers) -> tuple[Numbers, NDArray[np.float32]]:
        """Digits of the results [row, example, digit], and -log P of each, all rules being equally likely at first."""
        n_rules, n_rows, n_examples = results.shape
        base = self._base if self._result_width > 1 else len(self._numbers)
        by_rule = digits(results, base, self._result_width)
        right = by_rule[rule, np.arange(n_rows)]
        begun = np.logical_and.accumulate(by_rule == right, axis=-1)
        fits_so_far = np.ones((n_rules, n_rows, n_examples, 1), bool)
        fits_so_far[:, :, 1:, 0] = np.logical_and.accumulate(begun[..., -1], axis=2)[:, :, :-1]
        n_fitting = np.concatenate([fits_so_far, fits_so_far & begun], axis=-1).sum(axis=0)
        return right, -np.diff(np.log(n_fitting), axis=-1).astype(np.float32)


class Rules(Sums):
    """``a @ b = c ;`` where one of `RULES`, drawn for the row, says c of a and b: earlier examples alone tell which."""

    sign = "@"
    labels = RULES

    def __init__(self, n_digits: int, as_digits: bool) -> None:
        super().__init__(n_digits, as_digits, again=0.0)

    def results(self, a: Numbers, b: Numbers) -> Numbers:
        return np.stack([a + b, abs(a - b), np.maximum(a, b), backwards(a, self._n_digits)])

    def _label(self, rule: Numbers, said_before: NDArray[np.bool_]) -> NDArray[np.uint8]:
        return np.broadcast_to(1 + rule[:, None], said_before.shape).astype(np.uint8)


N_LABELS = 12
KNOWN = 0.25
"""Share of rows whose four labels are always the same ones, a step on the way to those whose labels are new."""


class Patterns:
    """``july frog :3 ;``: a month or a colour, an animal or a fruit, and a label that only their classes tell.

    Each of the four pairs of classes has a label of its own in a row, out of twelve, drawn anew; in a quarter of the
    rows they are always the same four. Source: as `icl_jax.data.corpora.patterns`. Departure from it: classes keep
    their places, and each line is new or one of the earlier ones.
    """

    labels: tuple[str, ...] = ("new_classes", "pattern", "repeated_line", "known_pattern")
    """Of a pair of classes that is new in the row; of one that earlier lines had, with other words; of two words that
    have stood in one line before; and in the rows whose labels are always the same."""

    def __init__(self, n_words: int, again: float) -> None:
        self._n_words = n_words
        first, second = np.ogrid[: 2 * n_words, : 2 * n_words]
        self._pairs = Pairs(2 * n_words, 1, is_unseen(_LINES, first, second), again)
        self.words = (
            *(word for words in CLASSES for word in words[:n_words]), *(f":{i}" for i in range(N_LABELS)), END,
        )  # fmt: skip

    def rows(self, rng: np.random.Generator, n_rows: int, n_tokens: int, is_held_out: bool) -> Body:
        """See `Kind`."""
        n_lines = -(-n_tokens // 4)
        first, second, pair_nats, said_before = self._pairs.draw(rng, n_rows, n_lines, is_held_out)
        classes = 2 * (first // self._n_words) + second // self._n_words
        is_known = rng.random(n_rows) < KNOWN
        drawn = rng.random((n_rows, N_LABELS)).argsort(axis=1)[:, :4]
        label_of = np.where(is_known[:, None], np.arange(4), drawn)
        label = np.take_along_axis(label_of, classes, axis=1)

        nats, seen = np.zeros((n_rows, n_lines), np.float32), np.zeros((n_rows, 4), bool)
        seen_before = np.empty((n_rows, n_lines), bool)
        row, known = np.arange(n_rows), np.full(n_rows, KNOWN)  # known: its probability given the lines so far
        for i in range(n_lines):
            here = classes[:, i]
            seen_before[:, i] = seen[row, here]
            if_known, if_drawn = label[:, i] == here, 1 / (N_LABELS - seen.sum(axis=1))
            prob = np.where(seen[row, here], 1.0, known * if_known + (1 - known) * if_drawn)
            known = np.where(seen[row, here], known, known * if_known / prob)
            nats[:, i] = -np.log(prob)
            seen[row, here] = True

        shown = np.where(is_known[:, None], 4, 1 + seen_before + said_before)
        tokens = np.stack(
            [first, 2 * self._n_words + second, 4 * self._n_words + label,
             np.full(label.shape, self.words.index(END))], axis=-1,
        )  # fmt: skip
        nothing = np.zeros(nats.shape, np.float32)
        return Body(
            tokens.astype(np.int32),
            np.stack([nothing, nothing, shown, nothing], axis=-1).astype(np.uint8),
            np.stack([pair_nats[..., 0], pair_nats[..., 1], nats, nothing], axis=-1),
        ).cut(n_tokens)
