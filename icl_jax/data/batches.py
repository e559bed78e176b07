"""Batches of consecutive steps, made ahead of the training loop."""

from collections.abc import Sequence
from itertools import count

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.corpus import Corpus
from icl_jax.data.order import remembered_order, row_ids
from icl_jax.read_ahead import ReadAhead


def read_batches(
    corpus: Corpus, *, seed: int, batch_size: int, start_step: int = 0, local: slice | None = None, depth: int = 4
) -> ReadAhead[NDArray[np.int32]]:
    """The batches of `start_step`, `start_step` + 1, ... without end: int32 [local rows, n_ctx + 1] each.

    `local`: the part of the global batch that this process holds; the global batch depends only on the corpus, the
    seed, the batch size and the step. An exception of the corpus is raised by `next`. To be closed, as `ReadAhead` is.
    Raises ValueError for a negative step, and a batch size or depth below 1.
    """
    if start_step < 0 or batch_size < 1:
        raise ValueError(f"{start_step=} must be 0 or more, {batch_size=} 1 or more")
    held = slice(None) if local is None else local
    rows = (corpus.rows(row_ids(seed, step, batch_size, corpus.n_rows)[held]) for step in count(start_step))
    return ReadAhead(rows, depth=depth, name="icl_jax-batches")


def read_own_batches(
    corpora: Sequence[Corpus], seeds: Sequence[int], *, batch_size: int, start_step: int = 0, depth: int = 4
) -> ReadAhead[NDArray[np.int32]]:
    """`read_batches` of several corpora at once, each with its seed: int32 [corpus, batch_size, n_ctx + 1] a step."""
    each = [(corpus, seed, remembered_order()) for corpus, seed in zip(corpora, seeds, strict=True)]
    rows = (
        np.stack([one.rows(row_ids(seed, step, batch_size, one.n_rows, order)) for one, seed, order in each])
        for step in count(start_step)
    )
    return ReadAhead(rows, depth=depth, name="icl_jax-batches")
