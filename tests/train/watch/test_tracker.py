"""What reaches W&B, read back from the transaction log."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb

from icl_jax.config import Config, MembersConfig, ModelConfig, TrackerConfig
from icl_jax.maths.finding import Finding
from icl_jax.maths.head_scores import InductionHead
from icl_jax.rundir import RunDir, probe_steps
from icl_jax.rundir.record import ProbeResult
from icl_jax.train import session
from icl_jax.train.watch import change_news
from icl_jax.train.watch.change_news import ChangeNews, Seen, spread_out
from icl_jax.train.watch.tracker import Tracker, make_tracker
from tests.train.fake_wandb import API_KEY, FakeRun, fake_init, log_probe, log_step, with_wandb
from tests.train.runs import TellingTracker, tiny_config, train_here
from tests.train.wandb_file import read_items, read_records

NOTHING = Finding((), 0.5)

pytestmark = pytest.mark.usefixtures("wandb_of_nobody")


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
    for known, scales in ((Seen(), (0.1, 0.8, 1.0)), (Seen(found), (1.0,))):  # the second resumes the first
        path = tmp_path / str(known.head)
        tracker = make_tracker(with_wandb("offline"), str(path), "abc123", pytest.fail, True, known)
        for i, scale in enumerate(scales):
            log_probe(tracker, i + 1, scale)
        tracker.finish(0)
        wandb.teardown()
        records = list(read_records(only_log(path)))
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
    assert session.seen_induction_head(run.load_record()) is None
    for i, step in enumerate(probe_steps(run.config)[:3]):
        score_NH = np.zeros((2, 3), np.float32)
        score_NH[1, 2] = (0.3, 0.4, 0.9)[i]
        score_NH[0, 1] = (0.1, 0.7, 0.1)[i]
        curve_T = np.ones(17, np.float32)
        run.open_record().write_probe(
            ProbeResult(
                step=step, icl_score=0.0, icl_windowed=0.0, icl_score_sem=0.1, icl_sem=0.1, held_out_loss=curve_T,
                prefix_matching=score_NH, previous_token=score_NH,
            )
        )  # fmt: skip
    tokens = probe_steps(run.config)[1] * run.config.tokens_per_step
    assert session.seen_induction_head(run.load_record()) == (tokens, 0, 1, pytest.approx(0.7))


def _score(n: int, size: float) -> np.ndarray:
    """A smooth fall, and a step between 40 and 50 % of the run."""
    u = np.linspace(0, 1, n)
    noise = np.random.default_rng(1).normal(scale=0.01, size=n)
    return 0.3 * np.exp(-8 * u) - size / (1 + 9 ** -((2 * u - 0.9) / 0.1)) + noise


class Told(FakeRun):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: list[str] = []

    def alert(self, title: str, text: str) -> None:
        self.alerts.append(f"{title}: {text}")


def test_a_run_that_ends_inside_its_change_says_so_in_the_summary() -> None:
    run, score = Told(), _score(50, 0.8)[:24]
    news = ChangeNews(run, Seen())
    for i, icl in enumerate(score):
        news.add_step(20_000.0 * i, 1e-3)
        news.add_probe(100_000.0 * i, icl)
    news.finish()
    assert "still going on at the end" in run.summary["phase_change"]
    assert run.summary["phase_change_end"] == np.inf


def test_a_phase_change_is_one_alert_and_stands_in_the_summary() -> None:
    run, score = Told(), _score(50, 0.8)
    news = ChangeNews(run, Seen())
    n_told = []
    for i, icl in enumerate(score):
        news.add_step(20_000.0 * i, 1e-3)
        news.add_probe(100_000.0 * i, icl, 0.031)
        n_told.append(len(run.alerts))
    news.finish()
    (alert,) = run.alerts
    assert alert.startswith("The in-context learning score changes abruptly: So far: ")
    assert alert.endswith(" ± 0.03 nats now.")
    assert 20 <= n_told.index(1) <= 27  # as it happens, not at the end
    assert run.summary["phase_change_start"] == pytest.approx(0.4 * 4.9e6, rel=0.03)
    assert run.summary["phase_change_end"] == pytest.approx(0.5 * 4.9e6, rel=0.03)
    assert run.summary["phase_change_nats"] == pytest.approx(-0.8, abs=0.05)
    assert run.summary.pop("phase_change") == "1.98 M to 2.44 M tokens, -0.79 nats (71 % of the run's change)"
    # Resumed, with all that its record holds: nobody is told again.
    tokens = tuple(100_000.0 * np.arange(50))
    again = Told()
    resumed = ChangeNews(again, Seen(None, tokens, (1e-3,) * 50, tokens[:40], tuple(score[:40])))
    for i in range(35, 50):  # some of them twice
        resumed.add_probe(tokens[i], score[i])
    resumed.finish()
    assert again.alerts == []
    assert again.summary.pop("phase_change").startswith("1.98 M to 2.44 M tokens")
    assert again.summary == pytest.approx(run.summary, rel=1e-3)


def test_of_very_many_steps_some_show_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change_news, "MAX_POINTS", 50)
    assert spread_out(np.arange(50)) == tuple(range(50))
    assert spread_out(np.arange(1000)) == tuple(range(0, 1000, 20))
    assert spread_out(np.zeros(0)) == ()
    news = ChangeNews(Told(), Seen())
    for step in range(3000):
        news.add_step(10.0 * step, step / 3000)
        news.add_step(10.0 * step, 7.0)  # twice
    assert 50 < len(news._tokens) == len(news._lr) <= 100
    np.testing.assert_allclose(news._lr, np.array(news._tokens) / 30000)
    assert np.ptp(np.diff(news._tokens)) < 0.1 * 30000 / 50
    assert news._tokens[-1] > 29000


def test_a_run_without_a_phase_change_says_so_and_alerts_nobody() -> None:
    run = Told()
    news = ChangeNews(run, Seen())
    for i, icl in enumerate(_score(50, 0.0)):
        news.add_step(100_000.0 * i, 1e-3)
        news.add_probe(100_000.0 * i, icl)
    news.finish()
    assert run.alerts == []
    assert run.summary["phase_change"].startswith("no change found (p = ")
    assert set(run.summary) == {"phase_change"}


def test_a_long_run_is_not_looked_at_at_every_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    from icl_jax.maths import finding

    looks = []
    monkeypatch.setattr(finding, "find_changes", lambda tokens, *_, **__: looks.append(len(tokens)) or NOTHING)
    news = ChangeNews(Told(), Seen())
    for i in range(1000):
        news.add_probe(float(i), 0.0)
    news.finish()
    assert len(looks) < 120
    assert looks[-1] == 1000


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
    assert run.summary == {"induction_heads_at_tokens": 7, "phase_change": "not tested: fewer than eight points"}


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


def test_members_are_quantiles_and_a_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeRun()
    fake_init(monkeypatch, run)
    tracker = make_tracker(with_wandb("offline"), str(tmp_path), "abc123", warn=lambda _line: None)
    monkeypatch.setattr(TellingTracker, "log_step", lambda _self, *args: tracker.log_step(*args))
    monkeypatch.setattr(TellingTracker, "log_probe", lambda _self, *args: tracker.log_probe(*args))
    values = "optimizer.lr=0.003,0.001"
    config = replace(tiny_config(train={"n_steps": 3}), members=MembersConfig(seeds="2", values=values))
    train_here(config, tmp_path / "run", n_devices=2)
    members = RunDir.open(str(tmp_path / "run"))
    tracker.log_members(session.members_table(members))
    tracker.finish(0)
    record = members.load_record()
    step, probe = (next(row for row in run.rows if name in row) for name in ("loss", "icl_windowed"))
    loss = record["loss"][0].mean("position")
    assert step["loss"] == pytest.approx(float(loss.median()))
    for name, low in (("loss/q05", 0.05), ("loss/q95", 0.95)):
        assert step[name] == pytest.approx(float(loss.quantile(low)))
    assert probe["icl_windowed/q25"] == pytest.approx(float(record["icl_windowed"][0].quantile(0.25)))
    best = record["prefix_matching"][0].max(["layer", "head"])
    assert probe["prefix_matching_max"] == pytest.approx(float(best.median()))
    assert not any("/L0H" in name for name in probe)
    table = run.rows[-1]["members"]
    scores = ["icl_score", "icl_windowed", "icl_score_sem", "icl_sem"]
    assert table.columns == ["member", "train.seed", "optimizer.lr", "loss", *scores, "failed at step"]
    assert [row[:3] for row in table.data] == [[0, 0, 0.003], [1, 1, 0.003], [2, 0, 0.001], [3, 1, 0.001]]
    assert [row[3] for row in table.data] == pytest.approx(record["loss"][-1].mean("position").values)


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


def test_model_without_layers_has_no_head_scores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = FakeRun()
    fake_init(monkeypatch, run)
    config = Config(model=ModelConfig(n_layers=0), tracker=TrackerConfig(wandb="offline"))
    tracker = make_tracker(config, str(tmp_path), "abc123", pytest.fail)
    none_NH = np.zeros((0, 4), np.float32)
    result = ProbeResult(
        step=1, icl_score=float("nan"), icl_windowed=0.0, icl_score_sem=0.2, icl_sem=0.3, held_out_loss=np.ones(3),
        prefix_matching=none_NH, previous_token=none_NH,
    )  # fmt: skip
    tracker.log_probe(10, result)
    tracker.finish(0)
    (row,) = run.rows
    # The score at single tokens is not sent where its error says that it says nothing.
    assert set(row) == {"tokens", "step", "icl_windowed", "icl_sem", "loss_by_position"}
    assert run.exit_code == 0
