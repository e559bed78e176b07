"""One background thread through which everything reaches the run directory, in order."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from icl_jax.config import UserError
from icl_jax.rundir.files import reason


class Writer:
    """Runs jobs one after the other. A job that fails stops the later ones; the failure is raised at the next call.

    Order is the contract: a state is saved only after the record and the snapshots before it.
    """

    # Bounds the host copies of parameters that wait; a slower disk then slows training down instead of filling memory.
    _MAX_WAITING = 4

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(self._MAX_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="run-directory-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is None:
                try:
                    job()
                except BaseException as error:
                    self._error = error
            self._jobs.task_done()
        self._jobs.task_done()

    def submit(self, function: Callable[..., None], *args: Any) -> None:
        """Queue `function(*args)`. Raises UserError if an earlier job failed."""
        self._raise()
        self._jobs.put(lambda: function(*args))

    def wait(self) -> None:
        """Return when everything queued is on disk. Raises UserError if a job failed."""
        self._jobs.join()
        self._raise()

    def _raise(self) -> None:
        error = self._error
        if isinstance(error, UserError):
            raise error
        if error is not None:
            raise UserError(
                f"cannot write the run directory: {reason(error)}: what was recorded before stays readable;"
                " the same command resumes"
            ) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._jobs.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
