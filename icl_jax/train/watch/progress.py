"""What the user sees of a training run: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import rich.progress
from rich.console import Console
from rich.text import Text

_REFRESH_S = 0.25
"""Seconds between redraws of the bar."""
_LINE_S = 10.0
"""Seconds between plain lines."""
_SECOND_LINE_S = 2.0
"""Seconds from the first plain line to the second, the first that knows the speed."""
_WINDOW_S = 10.0
"""Seconds that the shown speed is taken over."""


def format_count(n: float) -> str:
    """A count in at most four digits: ``950``, ``41.2k``, ``4.9M``."""
    if abs(n) < 999.5:
        return f"{n:.0f}"
    for suffix in "kMB":
        n /= 1000
        if abs(n) < 999.95:
            return f"{n:.1f}{suffix}"
    return f"{n / 1000:.1f}T"


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: ``8s``, ``1m40s``, ``2h05m``, ``3d04h``."""
    minutes, s = divmod(round(max(seconds, 0.0)), 60)
    if minutes == 0:
        return f"{s}s"
    hours, m = divmod(minutes, 60)
    if hours == 0:
        return f"{m}m{s:02}s"
    days, h = divmod(hours, 24)
    return f"{h}h{m:02}m" if days == 0 else f"{days}d{h:02}h"


class Progress:
    """Shows steps, speed, remaining time, loss and ICL score. A context manager.

    ``step_done`` counts finished steps, so that the last is ``n_steps``. Most calls of :meth:`update` only look at
    the clock. Output that cannot be written is given up without a word: a closed pipe never ends a run.
    """

    def __init__(
        self,
        console: Console,
        n_steps: int,
        tokens_per_step: int,
        start_step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._n_steps = n_steps
        self._tokens_per_step = tokens_per_step
        self._start_step = start_step
        self._clock = clock
        self._is_bar = console.is_terminal and not console.is_dumb_terminal
        self._bar: rich.progress.Progress | None = None
        self._is_broken = False
        self._step = start_step
        self._loss = float("nan")
        self._icl_score: float | None = None
        self._start_s = clock()
        self._next_s = self._start_s
        self._n_drawn = 0
        self._samples: deque[tuple[float, int]] = deque()  # (time, step) at each drawing in the window

    def __enter__(self) -> "Progress":
        self._start_s = self._next_s = self._clock()
        if self._is_bar:
            self._guard(self._start_bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._step != self._start_step:
            self._guard(self._draw_last)
        if self._bar is not None:
            self._is_broken = False  # whatever happened: stop() also gives stdout, stderr and the cursor back
            self._guard(self._bar.stop)

    def update(self, step_done: int, loss: float, icl_score: float | None) -> None:
        """Tell that ``step_done`` steps are finished; ``icl_score`` is the latest, None before the first."""
        self._step = step_done
        self._loss = loss
        self._icl_score = icl_score
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

    def message(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one. Markup in it has no effect."""
        self._guard(lambda: self._print(text))

    def _start_bar(self) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(bar_width=max(4, min(40, self._console.width - 66))),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            auto_refresh=False,
        )
        self._bar.add_task("train", total=self._n_steps, completed=self._start_step, status="")
        self._bar.start()

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
        icl = "" if self._icl_score is None else f"ICL {self._icl_score:.2f}"
        parts = [speed, f"loss {self._loss:.2f}", icl, time_text]
        if self._bar is not None:
            status = "  ".join(part for part in parts if part)
            self._bar.update(self._bar.task_ids[0], completed=self._step, status=status, refresh=True)
        else:
            tokens = f"{format_count(self._step * self._tokens_per_step)} tokens"
            self._print("  ".join(part for part in [f"step {self._step}/{self._n_steps}", tokens, *parts] if part))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), highlight=False, soft_wrap=True)

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
