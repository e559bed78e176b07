"""One background thread through which everything reaches the run directory, in order."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import jax

from icl_jax.config import UserError
from icl_jax.rundir.files import reason


class Writer:
    """Runs jobs one after the other. A job that fails stops the later ones; the failure is raised at the next call.

    Order is the contract: a state is saved only after the record and the snapshots before it.
    """

    # Bounds the host copies of parameters that wait; a slower disk then slows training down instead of filling memory.
    _MAX_WAITING = 4

    def __init__(self) -> None:
        self._jobs: queue.Queue[tuple[Callable[[], None], Future[None], bool] | None] = queue.Queue(self._MAX_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="run-directory-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done, also_after_failure = item
            if self._error is None or also_after_failure:
                try:
                    job()
                except BaseException as error:
                    self._error = self._error or error
            if self._error is None:
                done.set_result(None)
            else:
                done.set_exception(self._error)
            self._jobs.task_done()
        self._jobs.task_done()

    def submit(self, function: Callable[..., None], *args: Any, also_after_failure: bool = False) -> Future[None]:
        """Queue `function(*args)`. Raises UserError if an earlier job failed; the answer raises what this one does.

        also_after_failure: for what must be ended whatever has failed before; it is queued and run all the same.
        """
        if not also_after_failure:
            self._raise()
        done: Future[None] = Future()
        self._jobs.put((lambda: function(*args), done, also_after_failure))
        return done

    def wait(self) -> None:
        """Return when everything queued is on disk. Raises UserError if a job failed."""
        self._jobs.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            with self.explained():
                raise self._error

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise what storage fails by as UserError. That another process is gone is no fault of it."""
        try:
            yield
        except (UserError, jax.errors.JaxRuntimeError):
            raise
        except BaseException as error:
            was_moved = isinstance(error, FileNotFoundError)
            again = "--run with its new place resumes" if was_moved else "the same command resumes"
            what = f"{reason(error)}: was it moved or removed?" if was_moved else f"{reason(error)}:"
            raise UserError(
                f"cannot write the run directory: {what} what was recorded before stays readable; {again}"
            ) from error

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            return  # another process is gone: a state that is being saved would wait for it
        self._jobs.put(None)
        self._thread.join()
        if kind is None:
            self._raise()
