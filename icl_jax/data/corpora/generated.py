"""What corpora share whose rows are made on demand, in blocks, from (seed, row id)."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.data.corpus import Progress
from icl_jax.data.probe_tokens import eligible_tokens
from icl_jax.data.streams import Stream, random_stream

BLOCK_ROWS = 512
"""Rows generated together; part of the definition of a row, for they share one stream of random numbers."""

_N_BLOCKS_COUNTED = 4

Hidden = TypeVar("Hidden")


class Block(NamedTuple, Generic[Hidden]):
    """Rows made together."""

    tokens: NDArray[np.int32]
    labels: NDArray[np.uint8]
    hidden: Hidden
    """What the rows were drawn from, which a model cannot see; its first axis is the row."""


class GeneratedCorpus(ABC, Generic[Hidden]):
    """Rows without end; a pure function of (data.seed, row id). Held-out rows come from a stream of their own."""

    bos_id = 0
    label_names: tuple[str, ...] = ()
    n_rows = None

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        self.vocab_size = config.model.vocab_size
        self.n_ctx = config.model.n_ctx
        self.n_held_out = config.data.held_out_rows
        self._seed = config.data.seed
        # A batch touches one or two blocks; held-out rows take their turn in between.
        self._block = lru_cache(maxsize=4)(self._fresh_block)

    @abstractmethod
    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[Hidden]:
        """BLOCK_ROWS rows, of training or held out: tokens and labels [BLOCK_ROWS, n_ctx + 1]."""

    @property
    @abstractmethod
    def _definition(self) -> dict[str, Any]:
        """What fixes the rows besides seed, vocabulary and length: JSON values, the corpus's name and version."""

    def _fresh_block(self, stream: Stream, index: int) -> Block[Hidden]:
        block = self._make_block(random_stream(self._seed, stream, index), stream == Stream.HELD_OUT_ROWS)
        for array in (block.tokens, block.labels):
            array.setflags(write=False)
        return block

    def _gather(self, stream: Stream, ids: NDArray[np.int64], part: str) -> NDArray[Any]:
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or (len(ids) and ids.min() < 0):
            raise IndexError(f"row ids must be one-dimensional and 0 or more, got {ids!r}")
        indices, places = np.divmod(ids, BLOCK_ROWS)
        like = getattr(self._block(stream, int(indices[0]) if len(ids) else 0), part)
        out: NDArray[Any] = np.empty((len(ids), *like.shape[1:]), like.dtype)
        for index in np.unique(indices):
            here = indices == index
            out[here] = getattr(self._block(stream, int(index)), part)[places[here]]
        return out

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Training rows int32 [len(ids), n_ctx + 1]. Fast for ids near each other: rows are made 512 at a time."""
        return self._gather(Stream.TRAINING_ROWS, ids, "tokens")

    def row_labels(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Labels of training rows, uint8 [len(ids), n_ctx + 1], as :meth:`held_out_labels`."""
        return self._gather(Stream.TRAINING_ROWS, ids, "labels")

    def held_out(self, n: int) -> NDArray[np.int32]:
        """The first n held-out rows, int32 [n, n_ctx + 1]. Raises IndexError unless 0 <= n <= n_held_out."""
        return self._gather(Stream.HELD_OUT_ROWS, self._held_out_ids(n), "tokens")

    def held_out_labels(self, n: int) -> NDArray[np.uint8]:
        """Labels of :meth:`held_out`, uint8 [n, n_ctx + 1]: i for the i-th of `label_names` from 1, 0 for none."""
        return self._gather(Stream.HELD_OUT_ROWS, self._held_out_ids(n), "labels")

    def held_out_hidden(self, n: int) -> NDArray[Any]:
        """What the first n held-out rows were drawn from, row by row."""
        return self._gather(Stream.HELD_OUT_ROWS, self._held_out_ids(n), "hidden")

    def _held_out_ids(self, n: int) -> NDArray[np.int64]:
        if not 0 <= n <= self.n_held_out:
            raise IndexError(f"{n} held-out rows asked for: there are {self.n_held_out}")
        return np.arange(n)

    def probe_tokens(self) -> NDArray[np.int32]:
        """Eligible ids by their counts in the first 2,048 training rows."""
        counts_V = np.zeros(self.vocab_size, np.int64)
        for index in range(_N_BLOCKS_COUNTED):
            tokens = self._block(Stream.TRAINING_ROWS, index).tokens
            counts_V += np.bincount(tokens.reshape(-1), minlength=self.vocab_size)
        return eligible_tokens(counts_V, self.bos_id)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Each id's token, or its number where the corpus has no tokenizer."""
        if self.tokenizer_json is None:
            return [str(int(i)) for i in ids]
        from icl_jax.data.text.tokenizing import decode_tokens, parse_tokenizer  # which most runs have no use for

        return decode_tokens(parse_tokenizer(self.tokenizer_json), ids)

    @property
    def tokenizer_json(self) -> str | None:
        return None

    @cached_property
    def fingerprint(self) -> str:
        """See :class:`~icl_jax.data.corpus.Corpus`."""
        fixed = self._definition | {
            "seed": self._seed,
            "vocab_size": self.vocab_size,
            "n_ctx": self.n_ctx,
            "held_out_rows": self.n_held_out,
            # NumPy may change how it draws from a bit generator: rows themselves tell.
            "first_rows": hashlib.sha256(self.rows(np.arange(8)).tobytes()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
