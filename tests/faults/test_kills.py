"""kill -9 and SIGTERM in every phase of the real command: each leaves a run that reads well and goes on bit for bit."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from icl_jax.rundir import RunDir
from icl_jax.rundir.verify import problems
from tests.faults.conftest import Note
from tests.faults.killed import PHASES, Strike, run_struck
from tests.train.runs import TINY, assert_same_run, recorded, train_long

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


def _train(config: Path, run: Path, strike: Strike | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of training, struck or not."""
    return run_struck(["train", str(config), "--run", str(run), "--devices", "1"], strike, run.parent / "said")


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
    assert N_KILLS.keys() == PHASES.keys() - {"command"}
    assert sum(N_KILLS.values()) + N_RANDOM == 50


def _kill(config: Path, run: Path, unbroken: Path, phase: str, call: int, delay_ms: float) -> list[int]:
    """Steps to do again after the kill; nothing where the run was complete before it, which then starts anew."""
    status, _, err = _train(config, run, Strike(phase, call, delay_ms / 1e3, signal.SIGKILL))
    if status == 0:
        assert_same_run(run, unbroken)
        shutil.rmtree(run)
        return []
    assert status == -signal.SIGKILL, err
    return [_steps_to_do_again(run, unbroken)]


@pytest.mark.parametrize("phase", N_KILLS)
def test_killed_in(phase: str, long_config: Path, long_unbroken: Path, tmp_path: Path, note: Note) -> None:
    moments, run, again = np.random.default_rng(sorted(N_KILLS).index(phase)), tmp_path / "run", list[int]()
    if phase == "resume":
        assert _train(long_config, run, Strike("step", 40, 0, signal.SIGTERM))[0] == 0
    while len(again) < N_KILLS[phase]:
        call = int(moments.integers(1, 1 + LATEST_CALL.get(phase, 3)))
        delay_ms = moments.choice([0, moments.uniform(0, LATEST_MS.get(phase, 30))])
        again += _kill(long_config, run, long_unbroken, phase, call, delay_ms)
    assert _train(long_config, run)[::2] == (0, "")
    assert_same_run(run, long_unbroken)
    note(f"kill -9 in {phase}, {len(again)} times", "resumes at step N", f"at most {max(again)} steps done again")


def test_killed_at_random_moments(long_config: Path, long_unbroken: Path, tmp_path: Path, note: Note) -> None:
    moments, run, again = np.random.default_rng(20260714), tmp_path / "run", list[int]()
    while len(again) < N_RANDOM:
        # By the clock, but from an event on, so that a slow machine is struck in the same phases as a fast one: each
        # third time while the command starts, else soon after some step, whatever goes on beside it.
        is_early = len(again) % 3 == 0
        phase, call, latest_ms = ("command", 1, 2000) if is_early else ("step", int(moments.integers(1, 60)), 150)
        again += _kill(long_config, run, long_unbroken, phase, call, moments.uniform(0, latest_ms))
    assert _train(long_config, run)[::2] == (0, "")
    assert_same_run(run, long_unbroken)
    note(f"kill -9 at {len(again)} random moments", "resumes at step N", f"at most {max(again)} steps done again")


# Each in the middle of what a run with members writes: the first calls of a start, so that the run never ends before.
OF_MEMBERS = (("snapshot", 3, 0), ("record flush", 4, 2), ("state save", 3, 1), ("probe", 2, 0), ("removal", 3, 0))


def test_members_killed_at_five_moments(tmp_path: Path, note: Note) -> None:
    """Two with rows of their own and two that share theirs: what is left reads well, and goes on bit for bit."""
    text = TINY.replace("n_steps = 8", "n_steps = 60").replace("n_linear = 8", "n_linear = 30\nstate_every_s = 1e-9")
    text += '[members]\nseeds = [0, 1]\n"data.seed" = [0, 5]\n'
    config, run, unbroken, again = tmp_path / "members.toml", tmp_path / "run", tmp_path / "unbroken", list[int]()
    config.write_text(text.replace("n_probes = 4", "n_probes = 20"))
    assert _train(config, unbroken)[::2] == (0, "")
    for phase, call, delay_ms in OF_MEMBERS:
        status, _, err = _train(config, run, Strike(phase, call, delay_ms / 1e3, signal.SIGKILL))
        assert status == -signal.SIGKILL, f"{phase}: {err}"
        again.append(_steps_to_do_again(run, unbroken))
    assert _train(config, run)[::2] == (0, "")
    assert_same_run(run, unbroken)
    note(f"kill -9 of four members, {len(again)} times", "resumes at step N", f"at most {max(again)} steps done again")


@pytest.mark.parametrize("phase", ["snapshot", "state save", "record flush"])
def test_sigterm_in(phase: str, long_config: Path, long_unbroken: Path, tmp_path: Path, note: Note) -> None:
    run = tmp_path / "run"
    status, out, err = _train(long_config, run, Strike(phase, 2, 2e-3, signal.SIGTERM))
    assert (status, err) == (0, "")
    said = out.strip().splitlines()[-1]
    assert said.startswith("SIGTERM: state saved at step ")
    assert _steps_to_do_again(run, long_unbroken) == 0
    assert _train(long_config, run)[::2] == (0, "")
    assert_same_run(run, long_unbroken)
    note(f"SIGTERM in {phase}", said.partition(";")[0])
