"""`python -m tests.faults.killed PHASE CALL DELAY_MS SIGNAL train ...`: `icl-jax train ...` that is struck in a phase.

At the CALL-th call of the phase's function a thread waits DELAY_MS and sends SIGNAL to the process: before, within or
after what the function does, on whichever thread it runs.
"""

import os
import sys
import threading
import time
from types import ModuleType
from typing import Any

from icl_jax.cli import main
from icl_jax.rundir import RunDir
from icl_jax.rundir import run as run_module
from icl_jax.rundir.record import Record
from icl_jax.train.recorder import Recorder

PHASES: dict[str, tuple[type | ModuleType, str]] = {
    "start": (RunDir, "create"),
    "resume": (RunDir, "cut"),
    "step": (Recorder, "add"),
    "record flush": (Record, "write_steps"),
    "probe": (Record, "write_probe"),
    "snapshot": (RunDir, "save_snapshot"),
    "state save": (RunDir, "begin_state"),
    "removal": (run_module, "remove_arrays"),
}


def strike(phase: str, call: int, delay_s: float, signum: int) -> None:
    """Patch the phase's function."""
    owner, name = PHASES[phase]
    original = getattr(owner, name)
    n_calls = 0

    def hit() -> None:
        time.sleep(delay_s)
        os.kill(os.getpid(), signum)

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            threading.Thread(target=hit).start()
        return original(*args, **kwargs)

    # A class method comes bound from getattr, and must not be bound again.
    setattr(owner, name, staticmethod(struck) if name == "create" else struck)


if __name__ == "__main__":
    phase, call, delay_ms, signum, *sys.argv[1:] = sys.argv[1:]
    strike(phase, int(call), float(delay_ms) / 1e3, int(signum))
    main.main()
