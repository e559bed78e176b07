"""Commands of icl-jax side by side, each on devices of its own: what the members of a suite run as."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from rich.console import Console

from icl_jax import process
from icl_jax.display import DONE, jobs_display
from icl_jax.suites.nursery import Nursery


@dataclass(frozen=True, slots=True)
class Slot:
    """What one job may use."""

    cores: frozenset[int] | None = None
    """CPU cores; None: all that this process has."""
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """Commands that run one after the other; the first that fails ends the job."""

    name: str
    commands: list[list[str]]
    """What stands after `icl-jax`."""


class Stopped(Exception):
    """A signal ended the jobs; its number is the argument."""


def device_slots(n_jobs: int, n_slots: int = 0) -> list[Slot]:
    """A slot for each GPU; without GPUs, the CPU cores in up to `n_jobs` equal parts.

    `n_slots`: so many, instead of one for each GPU or core. JAX is not asked: it would take the jobs' devices.
    """
    gpus = _gpus()
    if gpus:
        return [Slot(environment={"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus[: n_slots or n_jobs]]
    if _has_tpu():
        return [Slot()]  # a TPU host's chips belong to one process
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    n = min(n_slots or process.cpu_count(), n_jobs)
    if len(cores) < n:
        return [Slot()] * n
    bounds = [len(cores) * i // n for i in range(n + 1)]
    return [Slot(frozenset(cores[a:b])) for a, b in pairwise(bounds)]


def has_accelerators() -> bool:
    """Whether there are GPUs or TPU chips here. JAX is not asked: it would take them."""
    return bool(_gpus()) or _has_tpu()


def _has_tpu() -> bool:
    return Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists()


def _gpus() -> list[str]:
    """Numbers of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if os.environ.get("JAX_PLATFORMS") == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def start(command: Sequence[str], slot: Slot) -> subprocess.Popen[str]:
    """Start `icl-jax COMMAND` on the slot's devices; standard error comes with standard output, through a pipe."""
    own_cores = f"import os; os.sched_setaffinity(0, {set(slot.cores)}); " if slot.cores else ""
    program = f"{own_cores}from icl_jax.cli.main import main; main()"
    # A session of its own: a terminal's Ctrl-C comes through this process alone, once.
    return subprocess.Popen(
        [sys.executable, "-c", program, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
        env={**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def run_jobs(jobs: Sequence[Job], slots: Sequence[Slot], logs: Path, console: Console) -> dict[str, str]:
    """Run all jobs, as many at a time as there are slots. Returns what the jobs that failed said last, by name.

    Output goes to `logs`/NAME.log, the latest line of each job to the console. SIGINT and SIGTERM are passed on to the
    commands, which save their state; when they have ended, `Stopped` is raised.
    """
    logs.mkdir(parents=True, exist_ok=True)
    free: queue.SimpleQueue[Slot] = queue.SimpleQueue()
    for slot in slots:
        free.put(slot)
    children = _Children()
    failed: dict[str, str] = {}

    def run(job: Job) -> None:
        slot = free.get()
        try:
            for command in job.commands:
                status, last = children.run(command, slot, logs / f"{job.name}.log", lambda line: say(job.name, line))
                if status:
                    failed[job.name] = last
                    say(job.name, last)
                    return
                if children.is_stopped():
                    return
            say(job.name, DONE)
        finally:
            free.put(slot)

    with (
        jobs_display(console, [job.name for job in jobs]) as say,
        children.passing_signals(),
        closing(children),
        ThreadPoolExecutor(len(slots)) as pool,
    ):
        for future in [pool.submit(run, job) for job in jobs]:
            future.result()
    if children.is_stopped():
        raise Stopped(children.signum)
    return failed


class _Children:
    """The processes that run commands, and the signal that is to end them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[Nursery] = []
        self._idle: list[tuple[Slot, Nursery]] = []
        self.signum = 0

    def run(self, command: list[str], slot: Slot, log: Path, say: Callable[[str], None]) -> tuple[int, str]:
        """Exit status of the command, and the last line that it printed."""
        last = ""
        with log.open("a", buffering=1, encoding="utf-8") as file:
            if self.is_stopped():
                return 0, last
            with self._lock:
                child = self._idle_on(slot) or Nursery(slot.cores, slot.environment)
                self._running.append(child)
            if self.is_stopped():  # while it was started
                child.send_signal(self.signum)
            for line in child.run(command):
                file.write(line)
                if line.strip():
                    last = line.strip()
                    say(last)
            with self._lock:
                self._running.remove(child)
                self._idle.append((slot, child))
        return (0 if self.is_stopped() else child.status), last

    def _idle_on(self, slot: Slot) -> Nursery | None:
        for i, (its_slot, child) in enumerate(self._idle):
            if its_slot == slot and not child.has_ended:
                return self._idle.pop(i)[1]
        return None

    def close(self) -> None:
        for child in [*self._running, *(child for _, child in self._idle)]:
            child.close()

    def is_stopped(self) -> bool:
        return self.signum != 0

    @contextmanager
    def passing_signals(self) -> Iterator[None]:
        def pass_on(signum: int, _frame: object) -> None:
            self.signum = signum
            for child in list(self._running):
                child.send_signal(signum)

        before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
