"""Which rows a step trains on: a pure function of (seed, step), the same for every number of processes."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.streams import Stream, random_stream

Order = Callable[[int, int, int], NDArray[np.int64]]
"""Of seed, epoch and number of rows: the rows in the order of that epoch."""


def _draw(seed: int, epoch: int, n_rows: int) -> NDArray[np.int64]:
    permutation = random_stream(seed, Stream.ORDER, epoch).permutation(n_rows)
    permutation.setflags(write=False)
    return permutation


def remembered_order() -> Order:
    """An order that keeps two epochs, because a batch may span the end of one and the start of the next.

    It has no state: it only saves drawing the same permutation at every step of an epoch.
    """
    return lru_cache(maxsize=2)(_draw)


_shared = remembered_order()


def row_ids(seed: int, step: int, batch_size: int, n_rows: int | None, order: Order = _shared) -> NDArray[np.int64]:
    """Row ids of the global batch of ``step``, int64 [batch_size], each from 0 to n_rows - 1.

    Every epoch visits each row once, in an order of its own; a batch may span epochs. `order`: where several seeds are
    read in turn, the one of this seed, so that it is drawn once. ``n_rows=None`` is a corpus
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
        ids[in_epoch] = order(seed, epoch, n_rows)[places[in_epoch]]
    return ids
