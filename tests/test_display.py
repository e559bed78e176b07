"""The lines and the bar that a training run shows, on an injected clock."""

import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from icl_jax.display import PreparationDisplay, StepsDisplay
from icl_jax.telling import format_count, format_duration
from tests.waiting import LAST_RESORT_S


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def plain_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=40), file  # narrower than any line: lines must not wrap


def terminal_console(width: int = 120) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=width, _environ={"TERM": "xterm"}), file


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, "0"),
        (999.4, "999"),
        (999.6, "1.0k"),
        (4096, "4.1k"),
        (999_949, "999.9k"),
        (999_950, "1.0M"),
        (4_915_200, "4.9M"),
        (2.5e9, "2.5B"),
        (3e12, "3.0T"),
    ],
)
def test_format_count(n: float, expected: str) -> None:
    assert format_count(n) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0s"),
        (-1, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (100, "1m40s"),
        (3599.7, "1h00m"),
        (7500, "2h05m"),
        (86400 * 3 + 3600 * 4, "3d04h"),
    ],
)
def test_format_duration(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_plain_lines_come_soon_then_every_ten_seconds_and_at_the_end() -> None:
    console, file = plain_console()
    clock = Clock()
    with StepsDisplay(console, n_steps=1000, tokens_per_step=4096, start_step=0, clock=clock) as progress:
        clock.now_s += 30  # compilation counts neither for the speed nor for the remaining time
        for step in range(1, 1001):
            progress.update(step, 4 - step / 500, None if step < 200 else (-0.354, 0.041))
            if step < 1000:
                clock.now_s += 0.025
    assert file.getvalue().splitlines() == [
        "step 1/1000  4.1k tokens  loss 4.00",
        "step 81/1000  331.8k tokens  163.8k tokens/s  loss 3.84  23s left",
        "step 481/1000  2.0M tokens  163.8k tokens/s  loss 3.04  ICL -0.35±0.04  13s left",
        "step 881/1000  3.6M tokens  163.8k tokens/s  loss 2.24  ICL -0.35±0.04  3s left",
        "step 1000/1000  4.1M tokens  74.5k tokens/s  loss 2.00  ICL -0.35±0.04  done in 55s",
    ]


def test_the_score_of_a_single_row_has_no_error() -> None:
    console, file = plain_console()
    with StepsDisplay(console, n_steps=1, tokens_per_step=1, start_step=0, clock=Clock()) as progress:
        progress.update(1, 1.0, (-0.354, float("nan")))
    assert "loss 1.00  ICL -0.35  " in file.getvalue()


def test_speed_is_that_of_the_last_seconds() -> None:
    console, file = plain_console()
    clock = Clock()
    with StepsDisplay(console, n_steps=10_000, tokens_per_step=1000, start_step=0, clock=clock) as progress:
        for step in range(1, 121):
            progress.update(step, 1.0, None)
            clock.now_s += 0.1 if step < 60 else 1.0
    speeds = [line.split("  ")[2] for line in file.getvalue().splitlines()[1:]]
    assert speeds[0] == "10.0k tokens/s"
    assert speeds[-2] == "1.0k tokens/s"


def test_resumed_and_stopped_run_counts_its_own_steps() -> None:
    console, file = plain_console()
    clock = Clock()
    with StepsDisplay(console, n_steps=1000, tokens_per_step=10, start_step=500, clock=clock) as progress:
        for step in range(501, 551):
            clock.now_s += 0.1
            progress.update(step, 1.0, None)
    assert file.getvalue().splitlines()[-1] == "step 550/1000  5.5k tokens  100 tokens/s  loss 1.00  stopped after 5s"


def test_run_without_a_step_prints_nothing() -> None:
    console, file = plain_console()
    with StepsDisplay(console, n_steps=1000, tokens_per_step=10, start_step=500, clock=Clock()):
        pass
    assert file.getvalue() == ""


def test_terminal_shows_a_bar_redrawn_four_times_a_second() -> None:
    console, file = terminal_console()
    clock = Clock()
    with StepsDisplay(console, n_steps=5000, tokens_per_step=1000, start_step=0, clock=clock) as progress:
        for step in range(1, 1001):
            progress.update(step, 3.119, (-0.354, 0.041))
            clock.now_s += 1 / 128
        drawn = file.getvalue()
    assert drawn.count("loss 3.12") == 32
    for part in ("993/5000", "128.0k tokens/s", "ICL -0.35±0.04", "31s left"):
        assert part in drawn
    last = file.getvalue()[len(drawn) :]
    assert "1000/5000" in last
    assert "stopped after 8s" in last
    assert last.count("\x1b[?25h") == 1, "the cursor is shown again"


@pytest.mark.parametrize("width", [70, 80])
def test_narrow_terminal_keeps_everything_on_one_line(width: int) -> None:
    console, file = terminal_console(width)
    clock = Clock()
    with StepsDisplay(console, n_steps=20_000, tokens_per_step=4096, start_step=0, clock=clock) as progress:
        for step in range(1, 9002):
            progress.update(step, 3.119, (-0.354, 0.041))
            clock.now_s += 0.125
        drawn = file.getvalue()
    assert "\n" not in drawn
    bar, _, text = re.sub(r"\x1b\[[\d;?]*\w", "", drawn).split("\r")[-1].partition(" ")
    assert set(bar) <= set("━╸╺")
    assert len(bar) >= 4
    error = "±0.04" if width >= 72 else ""
    assert text == f" 9001/20000 32.8k tokens/s  loss 3.12  ICL -0.35{error}  22m55s left"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_message_is_printed_as_it_is(is_terminal: bool) -> None:
    console, file = terminal_console() if is_terminal else plain_console()
    text = "saved [bold]state/100[/bold] :smile: of a run whose path is longer than the console is wide"
    with StepsDisplay(console, n_steps=5, tokens_per_step=1, start_step=0) as progress:
        progress.message(text)
    assert text + "\n" in file.getvalue()


class BrokenFile(io.StringIO):
    """A file that fails after its first writes."""

    n_writes = 0

    def write(self, text: str) -> int:
        self.n_writes += 1
        if self.n_writes > 1:
            raise OSError("no space left")
        return super().write(text)


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("is_closed", [False, True])
def test_output_that_cannot_be_written_is_given_up(is_terminal: bool, is_closed: bool) -> None:
    file = io.StringIO() if is_closed else BrokenFile()
    console = Console(file=file, force_terminal=is_terminal, width=80, _environ={"TERM": "xterm"})
    streams = sys.stdout, sys.stderr
    clock = Clock()
    with StepsDisplay(console, n_steps=100, tokens_per_step=1, start_step=0, clock=clock) as progress:
        if is_closed:
            file.close()
        for step in range(1, 101):
            progress.update(step, 1.0, None)
            progress.message("hello")
            clock.now_s += 1
    assert (sys.stdout, sys.stderr) == streams
    if isinstance(file, BrokenFile):
        assert file.n_writes <= 3, "it kept trying"


@pytest.mark.parametrize("is_terminal", [False, True])
def test_closed_pipe_does_not_end_the_program(checkout: Path, is_terminal: bool) -> None:
    program = f"""
import sys
from rich.console import Console
from icl_jax.display import StepsDisplay
now = 0.0
console = Console(force_terminal={is_terminal})
with StepsDisplay(console, 20000, 1, 0, clock=lambda: now) as progress:
    for step in range(1, 20001):
        now += 10
        progress.update(step, 1.0, None)
print("trained", file=sys.stderr)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(LAST_RESORT_S), errors) == (0, "trained\n")


def test_system_exit_of_a_signal_handler_goes_on() -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise SystemExit(7)

    console = Console(file=Interrupted(), width=80)
    with pytest.raises(SystemExit) as caught, StepsDisplay(console, 10, 1, 0) as progress:
        progress.update(1, 1.0, None)
    assert caught.value.code == 7


def test_update_is_cheap_between_drawings() -> None:
    console, _ = terminal_console()
    clock = Clock()
    with StepsDisplay(console, n_steps=10_000, tokens_per_step=1, start_step=0, clock=clock) as progress:
        progress.update(1, 1.0, None)
        calls_s = []
        for step in range(2, 1002):
            start_s = time.thread_time()
            progress.update(step, 1.0, None)
            calls_s.append(time.thread_time() - start_s)
    assert sorted(calls_s)[500] < 20e-6


def test_preparation_reaches_the_end_without_a_terminal() -> None:
    out = io.StringIO()
    with PreparationDisplay(Console(file=out), clock=lambda: 0.0) as display:
        for label in ("reading", "encoding"):
            for done in (1, 50, 100, 100):
                display(done, 100, label)
    assert [line.split(" of")[0] for line in out.getvalue().splitlines()] == [
        "reading: 1 %", "reading: 100 %", "encoding: 1 %", "encoding: 100 %",
    ]  # fmt: skip
