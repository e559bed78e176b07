"""The ``repeats`` corpus: a Zipfian bigram chain in which each row says fresh random phrases over and over.

What can be learned without context is the chain; what can only be learned in context are the row's phrases, by
copying what followed the same token before. Every row is made on demand from (seed, row id).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus
from icl_jax.data.corpus import Progress
from icl_jax.data.streams import Stream, random_stream

VERSION = 1
"""Goes up whenever the rows of a given config change."""

_MAX_CHAIN_ENTRIES = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatsOptions(Options):
    """Fresh random phrases, said again and again in a chain of tokens."""

    phrase_len: int = 8
    """Tokens in each of a row's fresh phrases."""
    n_phrases: int = 2
    """Fresh phrases per row."""
    phrase_prob: float = 0.2
    """Chance that a phrase starts at a free position."""

    def __post_init__(self) -> None:
        check_types("data.repeats", self)
        require(self.phrase_len >= 2, "data.repeats.phrase_len", self.phrase_len, "must be 2 or more")
        require(self.n_phrases >= 1, "data.repeats.n_phrases", self.n_phrases, "must be 1 or more")
        require(self.n_phrases < 2**31, "data.repeats.n_phrases", self.n_phrases, "must be less than 2**31")
        require(0 < self.phrase_prob <= 1, "data.repeats.phrase_prob", self.phrase_prob, "must be in (0, 1]")

    def check(self, config: Config) -> None:
        n_ctx, vocab_size = config.model.n_ctx, config.model.vocab_size
        allowed = f"must be less than model.n_ctx = {n_ctx}"
        require(self.phrase_len < n_ctx, "data.repeats.phrase_len", self.phrase_len, allowed)
        require(vocab_size >= 4, "model.vocab_size", vocab_size, "must be 4 or more for repeats")


def successor_ranks(vocab_size: int) -> NDArray[np.float64]:
    """Chance of a token's successors by rank, float64 [n_successors], summing to 1: Zipf with exponent 1.

    All vocab_size - 1 tokens but BOS are successors of each token, up to a vocabulary of 4,096; above that the first
    2**24 // vocab_size ranks, which bounds the chain's table at 2**24 entries.
    """
    n_successors = max(1, min(vocab_size - 1, _MAX_CHAIN_ENTRIES // vocab_size))
    weights = 1.0 / np.arange(1, n_successors + 1)
    return weights / weights.sum()


def bigram_chain(seed: int, vocab_size: int) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """``chain[a, r]``: the r-th most likely token after a, unsigned [vocab_size, n_successors], ids 1 .. V - 1."""
    rng = random_stream(seed, Stream.BIGRAM_CHAIN)
    n_successors = len(successor_ranks(vocab_size))
    dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
    tokens = np.arange(1, vocab_size, dtype=dtype)
    chain = np.empty((vocab_size, n_successors), dtype)
    if n_successors == len(tokens):
        chain[:] = tokens
        rng.permuted(chain, axis=1, out=chain)
        return chain
    for row in chain:
        row[:] = rng.choice(tokens, n_successors, replace=False)
    return chain


class RepeatsCorpus(GeneratedCorpus[None]):
    """Phrases in a chain.

    From left to right, at each free position one of the row's ``n_phrases`` phrases starts with chance
    ``phrase_prob`` (all equally likely) and is said whole; else the chain continues from the token before. A
    phrase is ``phrase_len`` tokens drawn uniformly from 1 .. vocab_size - 1, anew for each row.
    """

    label_names = ("phrase_new", "phrase_again")
    """Tokens inside a phrase, its first left out for nothing tells it: of one first said, and of one said again."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        super().__init__(config)
        options = config.data.options_of(RepeatsOptions)
        self._phrase_len, self._n_phrases, self._phrase_prob = (
            options.phrase_len,
            options.n_phrases,
            options.phrase_prob,
        )
        self._chain = bigram_chain(self._seed, self.vocab_size)
        self._rank_cdf = np.cumsum(successor_ranks(self.vocab_size))

    def _phrase_starts(self, coins_TB: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Where phrases start: at each coin that shows True while no phrase is being said. Position 0 is BOS."""
        starts_TB = np.zeros_like(coins_TB)
        next_free_B = np.ones(coins_TB.shape[1], np.int32)
        for t in range(1, len(coins_TB)):
            np.less_equal(next_free_B, t, out=starts_TB[t])
            starts_TB[t] &= coins_TB[t]
            np.copyto(next_free_B, t + self._phrase_len, where=starts_TB[t])
        return starts_TB

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[None]:
        # Arrays are [position, row] (TB) in here, so that the rows' tokens at one position lie side by side.
        shape_TB = (self.n_ctx + 1, BLOCK_ROWS)
        phrases_BxPL = rng.integers(1, self.vocab_size, (BLOCK_ROWS, self._n_phrases * self._phrase_len))
        coins_TB = rng.random(shape_TB, np.float32) < self._phrase_prob
        choice_TB = rng.integers(0, self._n_phrases, shape_TB, np.int32)
        rank_TB = np.searchsorted(self._rank_cdf, rng.random(shape_TB), side="right")
        # Rounding may leave the last entry of the cumulative sum just below 1.
        np.minimum(rank_TB, len(self._rank_cdf) - 1, out=rank_TB)

        starts_TB = self._phrase_starts(coins_TB)
        times_said_TB = np.zeros(shape_TB, np.int32)
        for phrase in range(self._n_phrases):
            said_TB = starts_TB & (choice_TB == phrase)
            np.copyto(times_said_TB, np.cumsum(said_TB, axis=0, dtype=np.int32), where=said_TB)
        position_T1 = np.arange(shape_TB[0], dtype=np.int32)[:, None]
        last_start_TB = np.maximum.accumulate(np.where(starts_TB, position_T1, -self._phrase_len), axis=0)
        offset_TB = position_T1 - last_start_TB
        is_phrase_TB = offset_TB < self._phrase_len
        when, row = np.nonzero(is_phrase_TB)
        start, offset = last_start_TB[when, row], offset_TB[when, row]
        place = choice_TB[start, row] * self._phrase_len + offset
        labels_BT = np.zeros(shape_TB[::-1], np.uint8)
        labels_BT[row, when] = np.where(offset == 0, 0, 1 + (times_said_TB[start, row] > 1))
        tokens_TB = np.zeros(shape_TB, self._chain.dtype)
        tokens_TB[when, row] = phrases_BxPL[row, place]

        chain, n_successors = self._chain.reshape(-1), self._chain.shape[1]
        is_free_TB = ~is_phrase_TB
        link_B = np.empty(BLOCK_ROWS, np.intp)
        next_B = np.empty(BLOCK_ROWS, chain.dtype)
        for t in range(1, shape_TB[0]):
            np.multiply(tokens_TB[t - 1], n_successors, out=link_B, dtype=np.intp)
            link_B += rank_TB[t]
            chain.take(link_B, out=next_B, mode="clip")
            np.copyto(tokens_TB[t], next_B, where=is_free_TB[t])
        tokens = np.ascontiguousarray(tokens_TB.T, dtype=np.int32)
        return Block(tokens, labels_BT, None)

    @property
    def _definition(self) -> dict[str, Any]:
        return {
            "corpus": "repeats",
            "version": VERSION,
            "phrase_len": self._phrase_len,
            "n_phrases": self._n_phrases,
            "phrase_prob": self._phrase_prob,
        }


CORPUS = CorpusKind(open=RepeatsCorpus, options=RepeatsOptions)
