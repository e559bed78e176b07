"""Stopping on SIGTERM and SIGINT at the end of a step."""

import signal
from types import FrameType, TracebackType
from typing import Any

from icl_jax.process import interrupts


class StopSignal:
    """Context manager: the first SIGTERM or SIGINT is kept in `signum`; a second SIGINT interrupts at once.

    So does the first one before `begin`: as long as no step is done there is nothing to save.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._has_begun = False
        self._previous: dict[int, Any] = {}

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if signum == signal.SIGINT and (self.signum == signal.SIGINT or not self._has_begun):
            raise KeyboardInterrupt
        self.signum = signum

    def begin(self) -> None:
        """A step has been done: from here on a signal is heeded at the end of one."""
        self._has_begun = interrupts.is_patient = True

    def __enter__(self) -> "StopSignal":
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        interrupts.is_patient = False
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
