"""What the user sees on the console: lines, and how far long work is, as a bar on a terminal or as plain lines."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console
from rich.live import Live
from rich.table import Table

from icl_jax.telling import format_count, format_duration

_REFRESH_S = 0.25
"""Seconds between redraws of the bar."""
_LINE_S = 10.0
"""Seconds between plain lines: of training, ..."""
_PREPARATION_LINE_S = 5.0
_JOB_LINE_S = 20.0
"""... of a corpus that is prepared, and of each job of a suite."""
_SECOND_LINE_S = 2.0
"""Seconds from the first plain line to the second, the first that knows the speed."""
_WITH_ERROR = 72
"""Columns of a terminal from which on the bar's line has room for the error of the ICL score."""
_WINDOW_S = 10.0
"""Seconds that the shown speed is taken over."""


def say(console: Console, text: str) -> None:
    """Print a text as it stands: no markup such as [red], no emoji codes, no colours, lines of any length."""
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


class _Display:
    """A bar on a terminal, plain lines elsewhere. A context manager.

    Output that cannot be written is given up without a word: a closed pipe never ends a run.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._is_bar = console.is_terminal and not console.is_dumb_terminal
        self._bar: rich.progress.Progress | None = None
        self._is_broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._is_broken = False  # whatever happened: stop() also gives stdout, stderr and the cursor back
            self._guard(self._bar.stop)

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one. Markup in it has no effect."""
        self._guard(lambda: say(self._console, text))

    def _start_bar(self, *columns: rich.progress.ProgressColumn, is_transient: bool = False) -> rich.progress.Progress:
        """The bar; its task is the caller's. It is drawn where the caller asks for it, by no thread."""
        self._bar = rich.progress.Progress(*columns, console=self._console, auto_refresh=False, transient=is_transient)
        self._bar.start()
        return self._bar

    def _guard(self, write: Callable[[], object]) -> None:
        """Write, unless writing has failed before."""
        if self._is_broken:
            return
        try:
            write()
        except (OSError, ValueError):  # ValueError: the file is closed
            self._is_broken = True
        except SystemExit as error:
            # Rich answers a broken pipe with SystemExit. Any other comes from a signal handler and must go on.
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            self._is_broken = True


class StepsDisplay(_Display):
    """Training: steps, speed, remaining time, loss and ICL score.

    ``step_done`` counts finished steps, so that the last is ``n_steps``. Most calls of :meth:`update` only look at
    the clock.
    """

    def __init__(
        self,
        console: Console,
        n_steps: int,
        tokens_per_step: int,
        start_step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, clock)
        self._n_steps = n_steps
        self._tokens_per_step = tokens_per_step
        self._start_step = start_step
        self._step = start_step
        self._loss = float("nan")
        self._icl: tuple[float, float] | None = None
        self._start_s = clock()
        self._next_s = self._start_s
        self._n_drawn = 0
        self._samples: deque[tuple[float, int]] = deque()  # (time, step) at each drawing in the window

    def __enter__(self) -> Self:
        self._start_s = self._next_s = self._clock()
        if self._is_bar:
            self._guard(self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._step != self._start_step:
            self._guard(self._draw_last)
        super().__exit__(kind, error, traceback)

    def update(self, step_done: int, loss: float, icl: tuple[float, float] | None) -> None:
        """Tell that ``step_done`` steps are finished; ``icl`` is the latest score and its error, or None."""
        self._step = step_done
        self._loss = loss
        self._icl = icl
        now = self._clock()
        if now < self._next_s:
            return
        self._sample(now)
        if self._is_bar:
            self._next_s = now + _REFRESH_S
        else:
            self._next_s = now + (_LINE_S if self._n_drawn else _SECOND_LINE_S)
        self._n_drawn += 1
        self._guard(self._draw)

    def _start(self) -> None:
        bar = self._start_bar(
            rich.progress.BarColumn(bar_width=max(4, min(40, self._console.width - 71))),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[status]}", markup=False),
        )
        bar.add_task("train", total=self._n_steps, completed=self._start_step, status="")

    def _sample(self, now: float) -> None:
        self._samples.append((now, self._step))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW_S:
            self._samples.popleft()

    def _draw(self) -> None:
        (then, then_step), (now, _) = self._samples[0], self._samples[-1]
        steps_per_s = (self._step - then_step) / (now - then) if now > then else 0.0
        remaining = ""
        if steps_per_s > 0:
            remaining = f"{format_duration((self._n_steps - self._step) / steps_per_s)} left"
        self._show(steps_per_s, remaining)

    def _draw_last(self) -> None:
        took_s = self._clock() - self._start_s
        steps_per_s = (self._step - self._start_step) / took_s if took_s > 0 else 0.0
        verb = "done in" if self._step >= self._n_steps else "stopped after"
        self._show(steps_per_s, f"{verb} {format_duration(took_s)}")

    def _show(self, steps_per_s: float, time_text: str) -> None:
        speed = f"{format_count(steps_per_s * self._tokens_per_step)} tokens/s" if steps_per_s > 0 else ""
        has_room = self._bar is None or self._console.width >= _WITH_ERROR
        parts = [speed, f"loss {self._loss:.2f}", _icl_words(self._icl, has_room), time_text]
        if self._bar is not None:
            status = "  ".join(part for part in parts if part)
            self._bar.update(self._bar.task_ids[0], completed=self._step, status=status, refresh=True)
        else:
            tokens = f"{format_count(self._step * self._tokens_per_step)} tokens"
            parts = [f"step {self._step}/{self._n_steps}", tokens, *parts]
            say(self._console, "  ".join(part for part in parts if part))


def _icl_words(icl: tuple[float, float] | None, with_error: bool) -> str:
    """The score with its standard error, which that of a single row has not."""
    if icl is None:
        return ""
    score, error = icl
    return f"ICL {score:.2f}" if math.isnan(error) or not with_error else f"ICL {score:.2f}±{error:.2f}"


class MeasurementsDisplay(_Display):
    """Analysis of one run: measurements taken, the latest by name; without a terminal a line at each tenth."""

    def __init__(self, console: Console, path: str) -> None:
        super().__init__(console)
        self._path = path
        self._tenth = 0
        self.n_taken = 0

    def update(self, done: int, total: int, name: str) -> None:
        self.n_taken = done
        self._guard(lambda: self._draw(done, total, name))

    def _draw(self, done: int, total: int, name: str) -> None:
        if self._is_bar:
            bar = self._bar or self._start_bar(
                rich.progress.TextColumn("{task.description}", markup=False), rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(), rich.progress.TimeRemainingColumn(), is_transient=True,
            )  # fmt: skip
            task = bar.task_ids[0] if bar.task_ids else bar.add_task("")
            bar.update(task, completed=done, total=total, description=f"{self._path}  {name}", refresh=True)
        elif 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            say(self._console, f"{self._path}: {done} of {total} measurements taken, the latest {name}")


class PreparationDisplay(_Display):
    """Preparation of a corpus, in bytes; without a terminal a line every five seconds.

    Call it with (bytes done, bytes in all, label). Shows nothing where nothing is prepared.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._label = ""
        self._is_done = False
        self._next_s = 0.0

    def __call__(self, done_bytes: int, total_bytes: int, label: str) -> None:
        self._guard(lambda: self._draw(done_bytes, total_bytes, label))

    def _draw(self, done_bytes: int, total_bytes: int, label: str) -> None:
        now, is_new = self._clock(), label != self._label
        is_done = done_bytes >= total_bytes
        is_last = is_done and (self._is_bar or not self._is_done)
        if not (is_new or is_last) and now < self._next_s:
            return
        self._label, self._is_done = label, is_done
        self._next_s = now + (_REFRESH_S if self._is_bar else _PREPARATION_LINE_S)
        if not self._is_bar:
            percent = 100 * done_bytes // max(total_bytes, 1)
            say(self._console, f"{label}: {percent} % of {total_bytes / 1e6:.1f} MB")
            return
        bar = self._bar or self._start_bar(
            rich.progress.TextColumn("{task.description}", markup=False), rich.progress.BarColumn(),
            rich.progress.DownloadColumn(), rich.progress.TimeRemainingColumn(),
        )  # fmt: skip
        if is_new:
            bar.add_task(label, total=total_bytes)
        bar.update(bar.task_ids[-1], completed=done_bytes, refresh=True)


DONE = "done"
"""The last line of a job that went well; it is always shown."""


@contextmanager
def jobs_display(console: Console, names: list[str]) -> Iterator[Callable[[str, str], None]]:
    """A function that shows a job's latest line: in a table on a terminal, now and then as a plain line elsewhere."""
    latest = dict.fromkeys(names, "waits")

    def table() -> Table:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for name, line in latest.items():
            grid.add_row(name, line)
        return grid

    if console.is_terminal:
        with Live(get_renderable=table, console=console, refresh_per_second=4):
            yield latest.__setitem__
        return
    lock = threading.Lock()
    said_s: dict[str, float] = {}

    def show(name: str, line: str) -> None:
        with lock:
            if line == DONE or time.monotonic() - said_s.get(name, -_JOB_LINE_S) >= _JOB_LINE_S:
                said_s[name] = time.monotonic()
                say(console, f"{name}: {line}")

    yield show
