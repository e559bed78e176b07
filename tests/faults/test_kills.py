"""kill -9 and SIGTERM in every phase of the real command: each leaves a run that reads well and goes on bit for bit."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from icl_jax.rundir import RunDir
from icl_jax.rundir.verify import problems
from tests.faults.conftest import Note
from tests.faults.killed import PHASES
from tests.train.runs import assert_same_run, finish, recorded, start_cli, train_long

pytestmark = [pytest.mark.slow, pytest.mark.ci]

N_KILLS = {
    "start": 5, "resume": 5, "step": 6, "record flush": 6, "probe": 3, "snapshot": 6, "state save": 6, "removal": 4,
}  # fmt: skip
N_RANDOM = 9
# Of the calls in one start, the latest that is struck.
LATEST_CALL = {"start": 1, "resume": 1, "step": 50, "probe": 1}
LATEST_MS = {"removal": 2}  # what it does takes that long


@pytest.fixture(scope="module")
def long_unbroken(long_config: Path) -> Path:
    return train_long(long_config, n_devices=1)


def _start(config: Path, run: Path, *strike: str) -> "subprocess.Popen[str]":
    """The command, or with (phase, call, delay, signal) the command that is struck there."""
    arguments = ("train", config, "--run", run, "--devices", "1")
    if not strike:
        return start_cli(*arguments)
    module = ("-m", "tests.faults.killed")
    return start_cli(*strike, *arguments, program=(sys.executable, *module))


def _steps_to_do_again(run: Path, unbroken: Path) -> int:
    """Check what a kill left: all that was recorded is right, what is there verifies. Returns steps past the state."""
    if not RunDir.is_run(str(run)):
        return 0  # killed before there was one
    found = RunDir.open(str(run))
    assert list(problems(found)) == []
    loss, whole = recorded(run)["loss"], recorded(unbroken)["loss"]
    np.testing.assert_array_equal(loss, whole[: len(loss)])
    return len(loss) - (found.last_state_step() or 0)


def test_there_are_fifty() -> None:
    assert N_KILLS.keys() == PHASES.keys()
    assert sum(N_KILLS.values()) + N_RANDOM == 50


def _killed(child: "subprocess.Popen[str]", run: Path, unbroken: Path) -> list[int]:
    """Steps to do again after the kill; nothing where the run was complete before it, which then starts anew."""
    status, _, err = finish(child)
    if status == 0:
        assert_same_run(run, unbroken)
        shutil.rmtree(run)
        return []
    assert status == -signal.SIGKILL, err
    return [_steps_to_do_again(run, unbroken)]


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in(phase: str, long_config: Path, long_unbroken: Path, tmp_path: Path, note: Note) -> None:
    moments, run, again = np.random.default_rng(sorted(PHASES).index(phase)), tmp_path / "run", list[int]()
    if phase == "resume":
        assert finish(_start(long_config, run, "step", "40", "0", str(int(signal.SIGTERM))))[0] == 0
    while len(again) < N_KILLS[phase]:
        call = int(moments.integers(1, 1 + LATEST_CALL.get(phase, 3)))
        delay_ms = moments.choice([0, moments.uniform(0, LATEST_MS.get(phase, 30))])
        child = _start(long_config, run, phase, str(call), str(delay_ms), str(int(signal.SIGKILL)))
        again += _killed(child, run, long_unbroken)
    assert finish(_start(long_config, run))[::2] == (0, "")
    assert_same_run(run, long_unbroken)
    note(f"kill -9 in {phase}, {len(again)} times", "resumes at step N", f"at most {max(again)} steps done again")


def test_killed_at_random_moments(long_config: Path, long_unbroken: Path, tmp_path: Path, note: Note) -> None:
    moments, run, again = np.random.default_rng(20260714), tmp_path / "run", list[int]()
    started_s = time.monotonic()
    assert finish(_start(long_config, tmp_path / "timed"))[0] == 0
    whole_s = time.monotonic() - started_s
    while len(again) < N_RANDOM:
        child = _start(long_config, run)
        time.sleep(moments.uniform(0.3, 1.0) * whole_s)  # a third of it: before there is anything to lose
        child.kill()
        again += _killed(child, run, long_unbroken)
    assert finish(_start(long_config, run))[::2] == (0, "")
    assert_same_run(run, long_unbroken)
    note(f"kill -9 at {len(again)} random moments", "resumes at step N", f"at most {max(again)} steps done again")


@pytest.mark.parametrize("phase", ["snapshot", "state save", "record flush"])
def test_sigterm_in(phase: str, long_config: Path, long_unbroken: Path, tmp_path: Path, note: Note) -> None:
    run = tmp_path / "run"
    status, out, err = finish(_start(long_config, run, phase, "2", "2", str(int(signal.SIGTERM))))
    assert (status, err) == (0, "")
    said = out.strip().splitlines()[-1]
    assert said.startswith("SIGTERM: state saved at step ")
    assert _steps_to_do_again(run, long_unbroken) == 0
    assert finish(_start(long_config, run))[::2] == (0, "")
    assert_same_run(run, long_unbroken)
    note(f"SIGTERM in {phase}", said.partition(";")[0])
