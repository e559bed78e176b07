"""Which rows a step trains on: a pure function of (seed, step), the same for every number of processes."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.streams import Stream, random_stream


# Two, because a batch may span the end of one epoch and the start of the next. The cache is no state: it only
# saves drawing the same permutation at every step of an epoch.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n_rows: int) -> NDArray[np.int64]:
    permutation = random_stream(seed, Stream.ORDER, epoch).permutation(n_rows)
    permutation.setflags(write=False)
    return permutation


def row_ids(seed: int, step: int, batch_size: int, n_rows: int | None) -> NDArray[np.int64]:
    """Row ids of the global batch of ``step``, int64 [batch_size], each from 0 to n_rows - 1.

    Every epoch visits each row once, in an order of its own; a batch may span epochs. ``n_rows=None`` is a corpus
    without end: every id is new, and ids are the positions step * batch_size + 0, 1, ... themselves.
    Raises ValueError if step is negative, or batch_size or n_rows is not positive.
    """
    if step < 0 or batch_size < 1 or (n_rows is not None and n_rows < 1):
        raise ValueError(f"{step=} must be 0 or more, {batch_size=} and {n_rows=} must be 1 or more")
    positions = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    if n_rows is None:
        return positions
    epochs, places = np.divmod(positions, n_rows)
    ids = np.empty_like(positions)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        in_epoch = slice(*np.searchsorted(epochs, [epoch, epoch + 1]))
        ids[in_epoch] = _permutation(seed, epoch, n_rows)[places[in_epoch]]
    return ids
