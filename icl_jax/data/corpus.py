"""What every corpus offers to training."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BOS = "<|bos|>"
"""The token at position 0 of a row, in tokenizers of our own."""

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, label) while a corpus is prepared."""


class Corpus(Protocol):
    """Rows of tokens by number. A row holds inputs ``row[:-1]`` and targets ``row[1:]``, and starts with BOS."""

    @property
    def vocab_size(self) -> int:
        """Every id is less than this; at most ``model.vocab_size``."""
        ...

    @property
    def bos_id(self) -> int:
        """Id at position 0 of every row."""
        ...

    @property
    def n_ctx(self) -> int:
        """Inputs per row."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Training rows; None: no end to them, every row id is fresh."""
        ...

    @property
    def n_held_out(self) -> int:
        """Held-out rows."""
        ...

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as JSON of the ``tokenizers`` library, where the corpus has one."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that fixes the rows: equal fingerprints mean equal rows."""
        ...

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Training rows int32 [len(ids), n_ctx + 1]. Raises IndexError for an id out of range."""
        ...

    def held_out(self, n: int) -> NDArray[np.int32]:
        """The first n held-out rows, int32 [n, n_ctx + 1]. Raises IndexError if n is out of range."""
        ...

    @property
    def label_names(self) -> tuple[str, ...]:
        """What single held-out tokens show, such as ``phrase_again``; empty where tokens are not labelled."""
        ...

    def held_out_labels(self, n: int) -> NDArray[np.uint8]:
        """Labels of :meth:`held_out`, uint8 [n, n_ctx + 1]: i for the i-th label name from 1, 0 for no label."""
        ...

    def probe_tokens(self) -> NDArray[np.int32]:
        """Sorted ids for random probe sequences; see :func:`icl_jax.data.probe_tokens.eligible_tokens`."""
        ...

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """One printable string per token: control characters and halves of characters are escaped."""
        ...
