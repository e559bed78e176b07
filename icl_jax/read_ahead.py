"""Items made ahead by a background thread: batches of rows in training, snapshots in analysis."""

import queue
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

_T = TypeVar("_T")

# A producer that waits for room in the queue looks this often whether it was closed meanwhile.
_POLL_S = 0.05


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


class ReadAhead(Generic[_T]):
    """The items in their order, up to `depth` of them made ahead and one more in the making.

    What making an item raises is raised by `next`, each time from then on. Use it as a context manager, or call
    `close`, so that its thread ends. Raises ValueError for a depth below 1.
    """

    def __init__(self, items: Iterable[_T], *, depth: int, name: str) -> None:
        if depth < 1:
            raise ValueError(f"{depth=} must be 1 or more")
        self._queue: queue.Queue[object] = queue.Queue(depth)
        self._last: object = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(items,), name=name, daemon=True)
        self._thread.start()

    def _produce(self, items: Iterable[_T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(_Failure(error))

    def _put(self, item: object) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _T:
        if self._last is None:
            if self._closed.is_set():
                raise StopIteration
            item = self._queue.get()
            if item is not _END and not isinstance(item, _Failure):
                return item  # type: ignore[return-value]
            self._last = item
        if isinstance(self._last, _Failure):
            raise self._last.error
        raise StopIteration

    def close(self) -> None:
        """End the thread and forget what it had made. May be called more than once."""
        self._closed.set()
        self._thread.join()
        while not self._queue.empty():
            self._queue.get_nowait()
        # Wakes a consumer in another thread that waits for an item that will never come.
        self._queue.put_nowait(_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
