"""Batches of consecutive steps, made ahead of the training loop by one background thread."""

import queue
import threading
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.corpus import Corpus
from icl_jax.data.order import row_ids

# A producer that waits for room in the queue looks this often whether it was closed meanwhile.
_POLL_S = 0.05


class Batches:
    """Iterator over the batches of ``start_step``, ``start_step + 1``, ...: int32 [local rows, n_ctx + 1] each.

    ``local`` is the part of the global batch that this process holds; the global batch depends only on the corpus,
    the seed, the batch size and the step. It has no end: take as many as there are steps. An exception of the
    corpus is raised by ``next``. Use it as a context manager, or call :meth:`close`, so that its thread ends.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        local: slice | None = None,
        depth: int = 4,
    ) -> None:
        if start_step < 0 or batch_size < 1 or depth < 1:
            raise ValueError(f"{start_step=} must be 0 or more, {batch_size=} and {depth=} 1 or more")
        self._corpus = corpus
        self._seed = seed
        self._batch_size = batch_size
        self._local = slice(None) if local is None else local
        self._queue: queue.Queue[NDArray[np.int32] | BaseException | None] = queue.Queue(maxsize=depth)
        self._failure: BaseException | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(start_step,), name="icl_jax-batches", daemon=True)
        self._thread.start()

    def _put(self, item: NDArray[np.int32] | BaseException) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return

    def _produce(self, start_step: int) -> None:
        try:
            for step in count(start_step):
                if self._closed.is_set():
                    return
                ids = row_ids(self._seed, step, self._batch_size, self._corpus.n_rows)
                self._put(self._corpus.rows(ids[self._local]))
        except BaseException as error:
            self._put(error)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NDArray[np.int32]:
        if self._failure is not None:
            raise self._failure
        if self._closed.is_set():
            raise StopIteration
        item = self._queue.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        return item

    def close(self) -> None:
        """End the thread and forget what it had made. May be called more than once."""
        self._closed.set()
        self._thread.join()
        while not self._queue.empty():
            self._queue.get_nowait()
        # Wakes a consumer in another thread that waits for a batch that will never come.
        self._queue.put_nowait(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
