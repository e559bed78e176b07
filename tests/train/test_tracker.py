"""What reaches W&B, read back from the transaction log, and what a W&B that fails does to a run: one warning."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import pytest
import wandb

from icl_jax.config import Config, ModelConfig, TrackerConfig
from icl_jax.model.head_scores import InductionHead
from icl_jax.rundir import RunDir, probe_steps
from icl_jax.rundir.record import ProbeResult
from icl_jax.train import session
from icl_jax.train import tracker as tracker_module
from icl_jax.train.tracker import NullTracker, Tracker, make_tracker
from tests.train.runs import TellingTracker, tiny_config, train_here
from tests.train.wandb_file import read_items, read_records

API_KEY = "0123456789" * 4
pytestmark = pytest.mark.usefixtures("wandb_of_nobody")
WARNING = "W&B failed, training goes on without it: "


class FakeRun:
    """Stands in for ``wandb.Run``."""

    offline = True
    id = "abc123"
    dir = "somewhere/wandb/offline-run/files"

    def __init__(self, log: Callable[[int], None] = lambda n: None, finish: Callable[[], None] = lambda: None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: list[list[str]] = []
        self.exit_code: int | None = None
        self._log = log
        self._finish = finish

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log_artifact(self, _artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.artifacts.append(aliases)

    def alert(self, title: str, text: str) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self._log(len(self.rows))
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self._finish()
        self.exit_code = exit_code


def fake_init(monkeypatch: pytest.MonkeyPatch, run: FakeRun) -> list[dict[str, Any]]:
    """Make ``wandb.init`` return a fake run; the list fills with the arguments of its calls."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        calls.append(arguments)
        return run

    monkeypatch.setattr(wandb, "init", init)
    return calls


def with_wandb(mode: Any, **fields: Any) -> Config:
    return Config(tracker=TrackerConfig(wandb=mode, **fields))


def log_step(tracker: Tracker, step: int) -> None:
    scalars: dict[str, SupportsFloat] = {
        "loss": np.float32(4 - step / 1024),
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_s": 3e4 + step,
    }
    tracker.log_step(step, step * 10, scalars)


def log_probe(tracker: Tracker, step: int, scale: float = 1.0) -> None:
    score_NH = np.float32(scale) * np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    tracker.log_probe(
        step,
        step * 10,
        icl_score=-step / 512,
        icl_windowed=-step / 256,
        held_out_loss_T=np.linspace(4, 3, 5) - step / 512,
        prefix_matching_NH=score_NH,
        previous_token_NH=1 - score_NH,
    )


def only_log(run_path: Path) -> Path:
    (path,) = run_path.glob("wandb/offline-run-*/run-*.wandb")
    return path


def test_offline_run_holds_everything(tmp_path: Path) -> None:
    run_path = tmp_path / "two layers"
    warnings: list[str] = []
    before = sys.excepthook, sys.exit, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    config = with_wandb("offline", project="phase", group="pairs", job_type="two-layers")
    tracker = make_tracker(config, str(run_path), "abc123", warnings.append)
    after = sys.excepthook, sys.exit, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert after == before
    for step in range(200):
        log_step(tracker, step)
    log_probe(tracker, 100)
    log_probe(tracker, 200)
    tracker.finish(3)
    log_step(tracker, 200)  # too late, and harmless
    tracker.finish(0)
    wandb.teardown()  # W&B's process writes the log's last block a moment after finish() returns

    path = only_log(run_path)
    assert warnings == []
    assert tracker.description == f"W&B: offline, {path.parent}"
    assert path.stat().st_size > 2 * 32 * 1024, "too small to cross blocks"
    records = list(read_records(path))

    (run,) = (r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project, run.display_name) == ("abc123", "phase", "two layers")
    assert (run.run_group, run.job_type) == ("pairs", "two-layers")
    sections = read_items(run.config.update)
    assert sections["model"]["n_layers"] == config.model.n_layers
    assert sections["optimizer"]["lr"] == config.optimizer.lr
    assert set(sections) >= {"model", "data", "train", "optimizer", "snapshots", "probes", "tracker"}

    metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    assert [(m.name, m.glob_name, m.step_metric) for m in metrics if m.glob_name == "*"] == [("", "*", "tokens")]
    assert "tokens" in [m.name for m in metrics]

    rows = [read_items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    assert [row["tokens"] for row in rows] == [*range(0, 2000, 10), 1000, 2000]
    assert [row["step"] for row in rows] == [*range(200), 100, 200]
    assert [row["loss"] for row in rows[:200]] == [4 - step / 1024 for step in range(200)]
    assert {name: rows[7][name] for name in ("lr", "grad_norm", "tokens_per_s")} == {
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_s": 30007,
    }
    probe = rows[200]
    assert (probe["icl_score"], probe["icl_windowed"]) == (-100 / 512, -100 / 256)
    assert (probe["prefix_matching_max"], probe["previous_token_max"]) == (5 / 8, 1)
    assert probe["prefix_matching/L0H1"] == 1 / 8
    assert probe["previous_token/L1H2"] == 1 - 5 / 8
    assert sum(name.startswith("previous_token/") for name in probe) == 6

    configs = [r.config for r in records if r.WhichOneof("record_type") == "config"]
    charts = {key: value for c in configs for key, value in read_items(c.update).items() if "visualize" in key}
    panel = charts["_wandb.visualize.loss_by_position"]["panel_config"]
    assert panel["panelDefId"] == "wandb/line/v0"
    assert (panel["fieldSettings"]["x"], panel["fieldSettings"]["y"]) == ("position", "loss_nats")
    for row, step in zip(rows[200:], (100, 200), strict=True):
        assert row["loss_by_position_table._type"] == "table-file"
        table = json.loads((path.parent / "files" / row["loss_by_position_table.path"]).read_text())
        assert table["columns"] == ["position", "loss_nats"]
        assert table["data"] == [[t, 4 - t / 4 - step / 512] for t in range(5)]

    summary: dict[str, Any] = {}
    for r in records:
        if r.WhichOneof("record_type") == "summary":
            summary |= read_items(r.summary.update)
    assert (summary["tokens"], summary["loss"], summary["icl_score"]) == (2000, 4 - 199 / 1024, -200 / 512)
    assert summary["prefix_matching/L1H2"] == 5 / 8
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [3]


def test_induction_heads_are_one_alert_and_stand_in_the_summary(tmp_path: Path) -> None:
    found = InductionHead(tokens=20, layer=1, head=2, score=0.5)
    told: list[list[str]] = []
    for known, scales in ((None, (0.1, 0.8, 1.0)), (found, (1.0,))):  # the second resumes the first
        tracker = make_tracker(with_wandb("offline"), str(tmp_path / str(known)), "abc123", pytest.fail, True, known)
        for i, scale in enumerate(scales):
            log_probe(tracker, i + 1, scale)
        tracker.finish(0)
        wandb.teardown()
        records = list(read_records(only_log(tmp_path / str(known))))
        alerts = [r.alert for r in records if r.WhichOneof("record_type") == "alert"]
        told.append([f"{alert.title}: {alert.text}" for alert in alerts])
        summary: dict[str, Any] = {}
        for r in records:
            if r.WhichOneof("record_type") == "summary":
                summary |= read_items(r.summary.update)
        assert (summary["induction_heads_at_tokens"], summary["induction_heads_head"]) == (20, "L1H2")
    what = "After 20 tokens head L1H2 has prefix matching 0.50 (0.4 or more)."
    assert told == [[f"Induction heads have formed: {what}"], []]


def test_a_resumed_run_knows_its_heads_from_the_record(tmp_path: Path) -> None:
    run = RunDir.create(str(tmp_path / "run"), tiny_config(), corpus_sha256="0" * 64)
    assert session.seen_induction_head(run) is None
    for i, step in enumerate(probe_steps(run.config)[:3]):
        score_NH = np.zeros((2, 3), np.float32)
        score_NH[1, 2] = (0.3, 0.4, 0.9)[i]
        score_NH[0, 1] = (0.1, 0.7, 0.1)[i]
        curve_T = np.ones(17, np.float32)
        run.open_record().write_probe(
            ProbeResult(
                step=step, icl_score=0.0, icl_windowed=0.0, held_out_loss=curve_T, prefix_matching=score_NH,
                previous_token=score_NH,
            )
        )  # fmt: skip
    tokens = probe_steps(run.config)[1] * run.config.tokens_per_step
    assert session.seen_induction_head(run) == (tokens, 0, 1, pytest.approx(0.7))


# W&B leaves the file of drawn values open.
@pytest.mark.filterwarnings("ignore:(?s)Exception ignored in.*drawn.yaml:pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_wandbs_agent_started_is_the_one_of_its_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "drawn.yaml").write_text("optimizer.lr: {value: 0.002}\n")
    for name, value in (("SWEEP_ID", "s1"), ("RUN_ID", "r1"), ("SWEEP_PARAM_PATH", str(tmp_path / "drawn.yaml"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    wandb.teardown()  # it reads the environment once
    tracker = make_tracker(with_wandb("offline"), str(tmp_path / "run"), "abc123", pytest.fail)
    log_step(tracker, 0)
    tracker.finish(0)
    wandb.teardown()
    (run,) = (r.run for r in read_records(only_log(tmp_path / "run")) if r.WhichOneof("record_type") == "run")
    assert (run.run_id, run.sweep_id) == ("r1", "s1")
    assert read_items(run.config.update)["optimizer.lr"] == 0.002


def test_no_second_alert_where_wandb_knows_of_the_heads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeRun()
    run.summary = {"induction_heads_at_tokens": 7}  # of a run that a crash took back behind them
    run.alert = pytest.fail  # type: ignore[method-assign]
    fake_init(monkeypatch, run)
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", pytest.fail)
    log_probe(tracker, 1)
    tracker.finish(0)
    assert run.summary == {"induction_heads_at_tokens": 7}


def test_resumed_run_continues_the_same_wandb_run(tmp_path: Path) -> None:
    tokens: dict[str, list[int]] = {}
    for steps in ((0, 1, 2), (1, 2, 3)):  # steps 1 and 2 were sent, then lost in a crash
        tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", pytest.fail)
        for step in steps:
            log_step(tracker, step)
        tracker.finish(0)
        wandb.teardown()
        path = next(p for p in tmp_path.glob("wandb/offline-run-*/run-abc123.wandb") if str(p) not in tokens)
        records = list(read_records(path))
        assert [r.run.run_id for r in records if r.WhichOneof("record_type") == "run"] == ["abc123"]
        rows = [read_items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
        tokens[str(path)] = [row["tokens"] for row in rows]
    assert list(tokens.values()) == [[0, 10, 20], [10, 20, 30]]


def test_init_is_told_to_resume_and_keep_out_of_the_way(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = FakeRun(log=lambda n: wandb.termwarn("429 encountered, retrying request"))
    calls = fake_init(monkeypatch, run)
    config = with_wandb("offline", entity="team")
    tracker = make_tracker(config, "gs://bucket/runs/first/", "abc123", pytest.fail)
    log_step(tracker, 0)
    tracker.finish(0)
    assert len(run.rows) == 1
    assert capfd.readouterr() == ("", "")
    (call,) = calls
    assert (call["id"], call["resume"], call["mode"]) == ("abc123", "allow", "offline")
    assert (call["name"], call["entity"], call["group"], call["project"]) == ("first", "team", None, "icl_jax")
    assert Path(call["dir"]).is_dir(), "a bucket needs a local directory"
    settings = call["settings"]
    assert (settings.silent, settings.console, settings.save_code, settings.disable_code) == (True, "off", False, True)
    assert settings.reinit == "create_new"
    assert settings.init_timeout <= 30


def test_online_bucket_run_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    run = FakeRun()
    run.offline = False
    run.url = "somewhere"  # type: ignore[attr-defined]
    calls = fake_init(monkeypatch, run)
    tracker = make_tracker(with_wandb("online"), "gs://bucket/run", "abc123", pytest.fail)
    assert tracker.description == "W&B: online, somewhere"
    assert Path(calls[0]["dir"]).is_dir()
    tracker.finish(0)
    assert not Path(calls[0]["dir"]).exists()


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
        release.wait(30)
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


def wait_for(event: threading.Event) -> None:
    event.wait(30)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline_s, "nothing happened"
        time.sleep(0.005)


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
    assert failed.wait(20)
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
    fake_init(monkeypatch, FakeRun(finish=lambda: wait_for(release)))
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warnings.append)
    start_s = time.monotonic()
    tracker.finish(143)
    assert time.monotonic() - start_s < 10
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


def test_a_snapshot_is_an_artifact_on_request(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for wanted in (True, False):
        run_path = tmp_path / str(wanted)
        folder = run_path / "snapshots" / "64"
        (folder / "d").mkdir(parents=True)
        (folder / "d" / "weights").write_bytes(b"0" * 100)
        tracker = make_tracker(with_wandb("offline", artifacts=wanted), str(run_path), "abc123", pytest.fail)
        tracker.log_snapshot(64, 640, str(folder))
        tracker.finish(0)
        wandb.teardown()
        records = read_records(only_log(run_path))
        artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
        assert len(artifacts) == wanted
        assert capfd.readouterr() == ("", "")
    (artifact,) = (
        r.artifact for r in read_records(only_log(tmp_path / "True")) if r.WhichOneof("record_type") == "artifact"
    )
    assert (artifact.name, artifact.type) == ("abc123-snapshots", "model")
    assert set(artifact.aliases) == {"step-64", "latest"}
    assert json.loads(artifact.metadata) == {"step": 64, "tokens": 640}
    (entry,) = artifact.manifest.contents
    assert (entry.path, entry.local_path) == (
        "d/weights",
        str(tmp_path / "True" / "snapshots" / "64" / "d" / "weights"),
    )


def test_the_tracker_is_told_of_snapshots_that_are_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[int] = []

    def seen(_tracker: Tracker, step: int, tokens: int, path: str) -> None:
        entry = RunDir.open(str(tmp_path / "run")).manifest.read()[-1]
        assert (entry.step, entry.tokens) == (step, tokens)
        assert Path(path, "_CHECKPOINT_METADATA").exists()
        told.append(step)

    monkeypatch.setattr(TellingTracker, "log_snapshot", seen)
    train_here(tiny_config(model={"n_layers": 0}, train={"n_steps": 3}), tmp_path / "run")
    assert told == [0, 1, 2, 3]


def test_a_snapshot_in_a_bucket_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    referred: list[str] = []
    monkeypatch.setattr(wandb.Artifact, "add_reference", lambda _self, uri: referred.append(uri))
    run = FakeRun()
    fake_init(monkeypatch, run)
    tracker = make_tracker(with_wandb("offline", artifacts=True), "gs://bucket/run", "abc123", pytest.fail)
    tracker.log_snapshot(64, 640, "gs://bucket/run/snapshots/64")
    tracker.finish(0)
    assert referred == ["gs://bucket/run/snapshots/64"]
    assert run.artifacts == [["step-64", "latest"]]


def test_an_artifact_that_fails_is_one_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_init(monkeypatch, FakeRun())
    warnings: list[str] = []
    tracker = make_tracker(with_wandb("offline", artifacts=True), str(tmp_path), "abc123", warnings.append)
    tracker.log_snapshot(64, 640, str(tmp_path / "gone"))
    tracker.log_snapshot(65, 650, str(tmp_path / "gone"))
    tracker.finish(0)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{WARNING}ValueError: Path is not a directory")


def test_model_without_layers_has_no_head_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeRun()
    fake_init(monkeypatch, run)
    config = Config(model=ModelConfig(n_layers=0), tracker=TrackerConfig(wandb="offline"))
    tracker = make_tracker(config, str(tmp_path), "abc123", pytest.fail)
    none_NH = np.zeros((0, 4), np.float32)
    tracker.log_probe(
        1,
        10,
        icl_score=float("nan"),
        icl_windowed=0.0,
        held_out_loss_T=np.ones(3),
        prefix_matching_NH=none_NH,
        previous_token_NH=none_NH,
    )
    tracker.finish(0)
    (row,) = run.rows
    assert set(row) == {"tokens", "step", "icl_score", "icl_windowed", "loss_by_position"}
    assert run.exit_code == 0


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
from icl_jax.train.tracker import make_tracker
tracker = make_tracker(Config(tracker=TrackerConfig(wandb="disabled")), "run", "abc123", print)
tracker.finish(0)
print(tracker.description, "wandb" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout == "W&B: disabled False\n"
