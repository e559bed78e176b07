"""Corpora of text: documents, tokenized once, cut into rows."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config, UserError
from icl_jax.config.corpora import CorpusKind
from icl_jax.data.corpus import Progress
from icl_jax.data.probe_tokens import eligible_tokens
from icl_jax.data.streams import Stream, random_stream
from icl_jax.data.text.documents import Documents, text_documents

if TYPE_CHECKING:
    from icl_jax.data.text.token_cache import TokenStore

VERSION = 1
"""Goes up whenever the rows of given tokens change."""


class TextCorpus:
    """Rows out of a stream of tokens.

    Row r predicts tokens r * n_ctx + 1 to (r + 1) * n_ctx of the stream: each token but the very first (a BOS) is
    predicted by exactly one row, and a last part shorter than a row by none. ``held_out_rows`` rows, drawn by
    data.seed, are kept from training; the others are numbered in the order of the stream.
    """

    def __init__(self, store: "TokenStore", config: Config) -> None:
        self.store = store
        self.tokenizer_json = store.tokenizer_json
        self.vocab_size = store.manifest.n_ids
        self.bos_id = store.manifest.bos_id
        self.n_ctx = config.model.n_ctx
        self.n_held_out = config.data.held_out_rows
        self._seed = config.data.seed
        n_all = (len(store.tokens) - 1) // self.n_ctx
        if n_all < 2 and len(store.tokens) < 2 * 2 + 1:  # two rows of the shortest n_ctx
            allowed = "too few for a row to train on and one held out at any model.n_ctx"
            raise UserError(f"data.source = {config.data.source!r}: holds {len(store.tokens)} tokens: {allowed}")
        if n_all < 1:
            allowed = f"must be less than {len(store.tokens)}, the tokens of data.source = {config.data.source!r}"
            raise UserError(f"model.n_ctx = {self.n_ctx}: {allowed}")
        if n_all == 1:
            allowed = f"leaves one row of the {len(store.tokens)} tokens of data.source = {config.data.source!r}"
            raise UserError(f"model.n_ctx = {self.n_ctx}: {allowed}: one is needed to train on and one held out")
        if n_all <= self.n_held_out:
            allowed = f"must be less than {n_all}, the rows of data.source = {config.data.source!r}"
            raise UserError(f"data.held_out_rows = {self.n_held_out}: {allowed} at model.n_ctx = {self.n_ctx}")
        self.n_rows = n_all - self.n_held_out
        # Position 0 of a row is BOS whatever the stream holds there, so a row is BOS and the tokens that it predicts.
        self._targets = store.tokens[1 : 1 + n_all * self.n_ctx].reshape(n_all, self.n_ctx)
        split = random_stream(self._seed, Stream.HELD_OUT_SPLIT)
        self._held_out_ids = split.choice(n_all, self.n_held_out, replace=False).astype(np.int64)
        # The k-th held-out row of the stream comes before training row i exactly if its number less k is at most i.
        self._held_out_before = np.sort(self._held_out_ids) - np.arange(self.n_held_out)

    def _gather(self, stream_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        out = np.empty((len(stream_ids), self.n_ctx + 1), np.int32)
        out[:, 0] = self.bos_id
        out[:, 1:] = self._targets[stream_ids]
        return out

    def stream_rows(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where training rows lie in the stream, int64 [len(ids)]. Raises IndexError for an id out of range."""
        ids = np.asarray(ids, np.int64)
        if ids.ndim != 1 or (len(ids) and not 0 <= ids.min() <= ids.max() < self.n_rows):
            raise IndexError(f"row ids must be one-dimensional and from 0 to {self.n_rows - 1}, got {ids!r}")
        return ids + np.searchsorted(self._held_out_before, ids, side="right")

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Training rows int32 [len(ids), n_ctx + 1]. Raises IndexError for an id out of range."""
        return self._gather(self.stream_rows(ids))

    label_names = ()

    def held_out_labels(self, n: int) -> NDArray[np.uint8]:
        """Text carries no labels: zeros."""
        return np.zeros((n, self.n_ctx + 1), np.uint8)

    def held_out(self, n: int) -> NDArray[np.int32]:
        """The first n held-out rows, int32 [n, n_ctx + 1]. Raises IndexError unless 0 <= n <= n_held_out."""
        if not 0 <= n <= self.n_held_out:
            raise IndexError(f"{n} held-out rows asked for: there are {self.n_held_out}")
        return self._gather(self._held_out_ids[:n])

    def probe_tokens(self) -> NDArray[np.int32]:
        """Eligible ids by their counts in the whole corpus."""
        return eligible_tokens(self.store.counts_V, self.bos_id)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """One printable string per token."""
        from icl_jax.data.text.tokenizing import decode_tokens

        return decode_tokens(self._tokenizer, (int(i) for i in ids))

    @cached_property
    def _tokenizer(self):  # type: ignore[no-untyped-def]
        from icl_jax.data.text.tokenizing import parse_tokenizer

        return parse_tokenizer(self.tokenizer_json)

    @cached_property
    def held_out_again(self) -> list[int]:
        """Numbers of the held-out rows whose tokens also follow each other in what is trained on."""
        from icl_jax.data.text.found_again import rows_found_again

        return [int(i) for i in np.flatnonzero(rows_found_again(self.store.tokens, self.n_ctx, self._held_out_ids))]

    @cached_property
    def fingerprint(self) -> str:
        """See :class:`~icl_jax.data.corpus.Corpus`."""
        manifest = self.store.manifest
        fixed = {
            "corpus": "text",
            "version": VERSION,
            "documents": manifest.documents_sha256,
            "tokenizer": manifest.tokenizer_sha256,
            "tokens": manifest.tokens_sha256,
            "seed": self._seed,
            "n_ctx": self.n_ctx,
            # NumPy may change how it draws from a bit generator: the split itself tells.
            "held_out_ids": hashlib.sha256(self._held_out_ids.astype("<i8").tobytes()).hexdigest(),
        }
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def open_text(documents: Documents, config: Config, progress: Progress | None) -> TextCorpus:
    """The corpus of some documents, tokenized first where the cache does not hold their tokens. Raises UserError."""
    from icl_jax.data.text.token_cache import check_vocab_size, open_tokens  # they import `tokenizers`

    data, vocab_size = config.data, config.model.vocab_size
    store = open_tokens(
        documents, source=data.source, tokenizer=data.tokenizer, vocab_size=vocab_size, progress=progress
    )
    check_vocab_size(store.manifest.n_ids, data.tokenizer, vocab_size)
    return TextCorpus(store, config)


def open_corpus(config: Config, progress: Progress | None = None) -> TextCorpus:
    """The files of ``text:PATH-OR-GLOB``."""
    return open_text(text_documents(config.data.source.partition(":")[2]), config, progress)


CORPUS = CorpusKind(open=open_corpus, argument="PATH-OR-GLOB")
