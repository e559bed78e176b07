"""`icl-jax ARGS` that is struck in a phase: `run_struck(ARGS, Strike(phase, call, delay_s, signum))`.

At the call-th call of the phase's function a thread waits and sends the signal to the process: before, within or after
what the function does, on whichever thread it runs. The process is forked from one that has imported everything, which
takes most of the time of a short run; `tests/train/test_resume.py` kills the command as a user starts it.
"""

import multiprocessing
import os
import sys
import threading
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import zarr  # noqa: F401

import icl_jax.train.session  # noqa: F401
from icl_jax.cli import main
from icl_jax.rundir import RunDir, checkpoints
from icl_jax.rundir.record import Record
from icl_jax.train.recorder import Recorder
from tests.waiting import LAST_RESORT_S

PHASES: dict[str, tuple[type | ModuleType, str]] = {
    "command": (main, "main"),
    "start": (RunDir, "create"),
    "resume": (RunDir, "cut"),
    "step": (Recorder, "add"),
    "record flush": (Record, "write_steps"),
    "probe": (Record, "write_probe"),
    "snapshot": (RunDir, "save_snapshot"),
    "state save": (RunDir, "begin_state"),
    "removal": (checkpoints, "remove_arrays"),
}


# JAX warns of forks; the process that forks here has no devices yet.
warnings.filterwarnings("ignore", message="os.fork")


class Strike(NamedTuple):
    """When the process is sent which signal."""

    phase: str
    call: int
    delay_s: float
    signum: int


def run_struck(args: list[str], strike: Strike | None, folder: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `icl-jax ARGS`, once it has ended; `folder` holds what it says."""
    folder.mkdir(exist_ok=True)
    files = [folder / "stdout", folder / "stderr"]
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload([__name__])
    child = forking.Process(target=_struck_command, args=(args, strike, files))
    child.start()
    child.join(LAST_RESORT_S)
    has_ended = child.exitcode is not None
    child.kill()
    child.join()
    out, err = (file.read_text() for file in files)
    assert has_ended, f"still running after {LAST_RESORT_S} s:\n{out}\n{err}"
    assert child.exitcode is not None
    return child.exitcode, out, err


def _struck_command(args: list[str], strike: Strike | None, files: list[Path]) -> None:
    for stream, path in zip((sys.stdout, sys.stderr), files, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.argv = ["icl-jax", *args]
    if strike is not None:
        _patch(strike)
    main.main()


def _patch(strike: Strike) -> None:
    owner, name = PHASES[strike.phase]
    original = getattr(owner, name)
    n_calls = 0

    def hit() -> None:
        time.sleep(strike.delay_s)
        os.kill(os.getpid(), strike.signum)

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == strike.call:
            threading.Thread(target=hit).start()
        return original(*args, **kwargs)

    # A class method comes bound from getattr, and must not be bound again.
    setattr(owner, name, staticmethod(struck) if name == "create" else struck)
