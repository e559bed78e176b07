"""What a W&B that fails, hangs or is not wanted does to a run: one warning, or nothing."""

import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import wandb

from icl_jax.train.watch import tracker as tracker_module
from icl_jax.train.watch.tracker import NullTracker, make_tracker
from tests.train.fake_wandb import API_KEY, FakeRun, fake_init, log_probe, log_step, with_wandb
from tests.waiting import wait_for, wait_until

pytestmark = pytest.mark.usefixtures("wandb_of_nobody")
WARNING = "W&B failed, training goes on without it: "


@pytest.mark.parametrize("error", [RuntimeError("no\nluck"), wandb.errors.CommError("no"), SystemExit("no")])
def test_failing_init_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException) -> None:
    def init(**arguments: Any) -> None:
        raise error

    monkeypatch.setattr(wandb, "init", init)
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    log_step(tracker, 0)
    log_probe(tracker, 0)
    tracker.finish(0)
    assert warnings == [f"{WARNING}{type(error).__name__}: no"]
    assert tracker.description == f"W&B: off ({type(error).__name__}: no)"


def test_hanging_init_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracker_module, "INIT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(tracker_module, "START_GRACE_S", 0.05)
    release = threading.Event()
    run = FakeRun()

    def init(**arguments: Any) -> FakeRun:
        wait_for(release)
        return run

    monkeypatch.setattr(wandb, "init", init)
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    log_step(tracker, 0)
    tracker.finish(0)
    assert len(warnings) == 1
    assert "no answer" in warnings[0]
    release.set()  # started after all, the run is closed at once
    wait_until(lambda: run.exit_code == 1)


def test_whoever_waits_for_a_server_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://tracker.invalid")
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setattr(tracker_module, "SILENCE_S", 0.01)
    release = threading.Event()
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        release.set()

    def init(**arguments: Any) -> FakeRun:
        wait_for(release)
        release.clear()
        return FakeRun(finish=lambda: wait_for(release))

    monkeypatch.setattr(wandb, "init", init)
    tracker = make_tracker(with_wandb("online"), str(tmp_path), "abc123", tell)
    tracker.finish(0)
    assert lines == [
        "W&B: waiting for http://tracker.invalid, 25 s at most; then training goes on without it",
        "W&B: waiting for http://tracker.invalid, 20 s at most; then wandb sync sends the rest later",
    ]


def test_failing_log_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failed = threading.Event()

    def log(n: int) -> None:
        if n == 2:
            failed.set()
            raise ValueError("bad point")

    run = FakeRun(log)
    fake_init(monkeypatch, run)
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    for step in range(3):
        log_step(tracker, step)
    wait_for(failed)
    wait_until(lambda: "icl_jax-wandb" not in [thread.name for thread in threading.enumerate()])
    log_step(tracker, 3)
    log_probe(tracker, 4)
    tracker.finish(0)
    assert [row["step"] for row in run.rows] == [0, 1]
    assert warnings == [f"{WARNING}ValueError: bad point"]
    assert tracker.description == "W&B: off (ValueError: bad point)"


def test_failing_finish_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def finish() -> None:
        raise BrokenPipeError("gone")

    fake_init(monkeypatch, FakeRun(finish=finish))
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    tracker.finish(0)
    tracker.finish(0)
    assert warnings == [f"{WARNING}BrokenPipeError: gone"]


def test_stuck_wandb_neither_blocks_steps_nor_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracker_module, "INTERRUPTED_FINISH_TIMEOUT_S", 0.05)
    release = threading.Event()
    run = FakeRun(finish=lambda: wait_for(release))
    fake_init(monkeypatch, run)
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    tracker.finish(143)
    assert run.exit_code is None  # W&B is still at it
    assert warnings == ["W&B has not taken everything; send the rest with: wandb sync somewhere/wandb/offline-run"]
    release.set()


def test_points_that_pile_up_are_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tracker_module, "MAX_WAITING_POINTS", 50)
    release = threading.Event()
    fake_init(monkeypatch, FakeRun(log=lambda n: wait_for(release)))
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    for step in range(200):
        log_step(tracker, step)
    tracker.finish(0)
    assert warnings == [f"{WARNING}50 points are waiting to be sent"]
    release.set()


def test_an_artifact_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_init(monkeypatch, FakeRun())
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline", artifacts=True), str(tmp_path), "abc123", warnings.append)
    tracker.log_snapshot(64, 640, str(tmp_path / "gone"))
    tracker.log_snapshot(65, 650, str(tmp_path / "gone"))
    tracker.finish(0)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{WARNING}ValueError: Path is not a directory")


@pytest.mark.parametrize(
    ("environment", "is_in_netrc", "expected"),
    [
        ({}, False, "disabled (not logged in)"),
        ({"WANDB_API_KEY": API_KEY}, False, "online"),
        ({}, True, "online"),
        ({"WANDB_MODE": "offline"}, False, "offline"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": API_KEY}, False, "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": API_KEY}, False, "disabled (WANDB_MODE)"),
        ({"WANDB_MODE": "online"}, False, "disabled (not logged in)"),
    ],
)
def test_auto_follows_the_login_without_network(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    environment: dict[str, str],
    is_in_netrc: bool,
    expected: str,
) -> None:
    # The server is nowhere; a service process would be reached through a socket as well.
    monkeypatch.setenv("WANDB_BASE_URL", "http://tracker.invalid")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if is_in_netrc:
        (tmp_path / "netrc").write_text(f"machine tracker.invalid login user password {API_KEY}\n")
        (tmp_path / "netrc").chmod(0o600)
    connections: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: connections.append(address))
    calls = fake_init(monkeypatch, FakeRun())
    tracker = make_tracker(with_wandb("auto"), str(tmp_path), "abc123", pytest.fail)
    if expected in ("online", "offline"):
        assert [call["mode"] for call in calls] == [expected]
        tracker.finish(0)
    else:
        assert calls == []
        assert tracker.description == f"W&B: {expected}"
    assert connections == []
    assert capfd.readouterr() == ("", "")


def test_auto_without_wandb_is_disabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, "wandb", None)
        tracker = make_tracker(with_wandb("auto"), str(tmp_path), "abc123", pytest.fail)
    assert tracker.description == "W&B: disabled (wandb is not installed)"


def test_online_without_login_is_one_warning_and_no_prompt(tmp_path: Path) -> None:
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("online"), str(tmp_path), "abc123", warnings.append)
    tracker.finish(0)
    assert warnings == [f"{WARNING}not logged in: run `wandb login` or set WANDB_API_KEY"]
    assert isinstance(tracker, NullTracker)


def test_only_the_writer_tracks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = fake_init(monkeypatch, FakeRun())
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", pytest.fail, is_writer=False)
    log_step(tracker, 0)
    log_probe(tracker, 0)
    tracker.finish(0)
    assert calls == []


def test_wandb_is_imported_only_where_it_is_used(tmp_path: Path, checkout: Path) -> None:
    program = """
import sys
from icl_jax.config import Config, TrackerConfig
from icl_jax.train.watch.tracker import make_tracker
tracker = make_tracker(Config(tracker=TrackerConfig(wandb="disabled")), "run", "abc123", print)
tracker.finish(0)
print(tracker.description, "wandb" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout == "W&B: disabled False\n"
