"""`icl-jax launch --on local`: several processes of one run on this machine."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from icl_jax.rundir import RunDir
from icl_jax.train.session import _HEARTBEAT_S
from tests.train.runs import TINY, finish, start_cli

pytestmark = pytest.mark.slow

ENDLESS = TINY.replace("n_steps = 8", "n_steps = 1000000").replace("n_linear = 8", "n_linear = 0")


def _launch(folder: Path, config: str) -> subprocess.Popen[str]:
    (folder / "tiny.toml").write_text(config)
    options = ("--on", "local", "--processes", "2", "--run", "run")
    return start_cli("launch", "tiny.toml", *options, cwd=folder, stderr=subprocess.STDOUT)


def _read_until(child: subprocess.Popen[str], pattern: str) -> str:
    assert child.stdout is not None
    said = ""
    for line in child.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"no {pattern!r} in:\n{said}")


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return sorted(found)


def test_two_processes_train_to_the_end(tmp_path: Path) -> None:
    status, said, _ = finish(_launch(tmp_path, TINY))
    assert status == 0, said
    assert "[0] run: complete, 8 steps" in said
    (start,) = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
    assert start["processes"] == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_one_process_killed_ends_the_others_within_a_minute(tmp_path: Path) -> None:
    start_s = time.monotonic()
    child = _launch(tmp_path, ENDLESS)
    _read_until(child, r"^\[0\] step ")
    pids = _children(child.pid)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    killed_s = time.monotonic()
    status, said, _ = finish(child)
    # A machine with other work takes longer for all; how much it shows in how long they took to start.
    assert time.monotonic() - killed_s < max(60, _HEARTBEAT_S + (killed_s - start_s))
    assert status != 0
    assert re.search(r"process [01] ended with status \d+: ending the others", said), said
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_sigterm_reaches_all_and_saves(tmp_path: Path) -> None:
    child = _launch(tmp_path, ENDLESS)
    _read_until(child, r"^\[0\] step ")
    child.send_signal(signal.SIGTERM)
    status, said, _ = finish(child)
    assert status == 0, said
    assert "SIGTERM: state saved at step" in said
    assert (RunDir.open(str(tmp_path / "run")).last_state_step() or 0) > 0


def test_more_processes_than_cores_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    child = start_cli("launch", "tiny.toml", "--processes", "9999", "--run", "run", cwd=tmp_path)
    status, _, err = finish(child)
    assert status == 2
    assert "--processes = 9999: must be at most" in err
