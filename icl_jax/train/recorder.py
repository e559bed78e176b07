"""From metrics on the device to blocks in the record, without waiting for the newest step."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from icl_jax.config import NonFiniteLossError
from icl_jax.rundir.record import StepBlock
from icl_jax.train.failures import Failures, describe, is_good
from icl_jax.train.members import Rounds, joined
from icl_jax.train.step import StepMetrics

# Steps dispatched before the oldest are fetched, and fetched at a time. Two steps in flight on several CPU devices can
# deadlock XLA's in-process all-reduce, so there each step is waited for; fetching costs nothing there. Where several
# processes have members, nothing waits in a step, and each fetch does.
_IN_FLIGHT = {"cpu": (1, 1)}
_IN_FLIGHT_ACCELERATOR = (32, 16)
_NONE = np.zeros(0, np.float32)


class Recorder:
    """Collects steps and hands them on as blocks.

    `write_block` is called at least every `flush_every_s` seconds and at `flush`; `seen` is called for each fetched
    step with (step, numbers, step_s): the loss is a mean over positions, the time a mean over the steps fetched
    together, as only their end is seen. With `failures` every number has the axis of members in front.
    """

    def __init__(
        self,
        write_block: Callable[[StepBlock], None],
        seen: Callable[[int, dict[str, Any], float], None],
        *,
        platform: str,
        flush_every_s: float,
        failures: Failures | None = None,
    ) -> None:
        self._write_block = write_block
        self._seen = seen
        self._failures = failures
        waits = failures is None or jax.process_count() == 1
        in_flight = _IN_FLIGHT.get(platform, _IN_FLIGHT_ACCELERATOR) if waits else _IN_FLIGHT_ACCELERATOR
        self._max_pending, self._fetch_at_a_time = in_flight
        self._flush_every_s = flush_every_s
        self._pending: deque[tuple[int, Any, np.ndarray]] = deque()
        self._fetched: list[tuple[int, StepMetrics, float, np.ndarray]] = []
        self._last_fetch = self._last_flush = time.monotonic()

    def add(self, step: int, metrics: StepMetrics | Rounds, are_on: np.ndarray = _NONE) -> None:
        """Take a dispatched step, and which interventions were on. Raises NonFiniteLossError for an earlier one that
        went wrong.
        """
        self._pending.append((step, metrics, are_on))
        if len(self._pending) >= self._max_pending:
            self._fetch(self._fetch_at_a_time)
        if time.monotonic() - self._last_flush >= self._flush_every_s:
            self.flush()

    def pause(self) -> None:
        """Leave what happens until the next step (probes, saves) out of its time."""
        self.settle()
        self._last_fetch = time.monotonic()

    def settle(self) -> None:
        """Wait for every dispatched step. Raises NonFiniteLossError if one went wrong."""
        self._fetch(len(self._pending))

    def flush(self) -> None:
        """Hand on what has been fetched."""
        self._last_flush = time.monotonic()
        if not self._fetched:
            return
        steps, metrics, step_s, are_on = zip(*self._fetched, strict=True)
        block = StepBlock(
            first_step=steps[0],
            loss=np.stack([one.loss_T for one in metrics]),
            lr=np.array([one.lr for one in metrics], np.float32),
            grad_norm=np.array([one.grad_norm for one in metrics], np.float32),
            step_s=np.array(step_s, np.float32),
            intervened=np.stack(are_on),
        )
        self._fetched.clear()
        self._write_block(block)

    def _fetch(self, n: int) -> None:
        if n == 0:
            return
        taken = [self._pending.popleft() for _ in range(n)]
        on_host = self._on_host([metrics for _, metrics, _ in taken])
        now = time.monotonic()
        step_s, self._last_fetch = (now - self._last_fetch) / n, now
        for (step, _, are_on), metrics in zip(taken, on_host, strict=True):
            kept = metrics
            if self._failures is not None:
                kept = self._failures.judge(step, metrics)
            elif not is_good(metrics):
                raise NonFiniteLossError(step, describe(metrics))
            self._fetched.append((step, kept, step_s, are_on))
            loss = np.asarray(kept.loss_T).mean(axis=-1)
            each = {"loss": loss, "lr": kept.lr, "grad_norm": kept.grad_norm}
            self._seen(step, each, step_s)

    def _on_host(self, taken: list[Any]) -> list[StepMetrics]:
        if self._failures is None:
            return jax.device_get(taken)
        # All steps at a time: of several processes, one exchange.
        parts = tuple(list(steps) for steps in zip(*(metrics.parts for metrics in taken), strict=True))
        found: list[StepMetrics] = joined(Rounds(parts, taken[0].take))
        return found
