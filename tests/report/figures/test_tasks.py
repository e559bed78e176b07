"""Figures of the tasks: the lines are the analysis, and the page about them runs as it stands."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, SnapshotConfig, TrainConfig
from icl_jax.data import open_corpus
from icl_jax.report.chart import Gap
from icl_jax.report.figures import classes, markov, triggers
from icl_jax.report.figures.figure import RunFigure
from icl_jax.report.figures.markov import strategy_names
from icl_jax.report.figures.triggers import best_memories, formed_at
from icl_jax.report.pictures import save_figure
from icl_jax.report.reported_run import ReportedRun
from icl_jax.rundir import HeldOut, RunDir
from tests.data_configs import data_config
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=2, n_ctx=31, vocab_size=4, positions="standard")
TASKS = {
    "markov-3": (MODEL, DataConfig(source="markov", held_out_rows=200), ("markov_strategies", "head_scores")),
    "triggers-5": (
        ModelConfig(n_layers=2, d_model=6, n_heads=2, n_ctx=31, vocab_size=65, positions="standard"),
        DataConfig(source="triggers", held_out_rows=200),
        ("memory_recall", "labelled_tokens", "held_out_loss"),
    ),
    "classes-icl": (
        ModelConfig(n_layers=2, d_model=6, n_heads=2, n_ctx=27, vocab_size=60),
        data_config(source="classes", n_classes=50, held_out_rows=200),
        ("labelled_tokens", "label_matching"),
    ),
}


def make_run(folder: Path, name: str) -> RunDir:
    """Three random models as snapshots, analysed; nothing is trained."""
    model, data, wanted = TASKS[name]
    config = Config(
        model=model, data=data, train=TrainConfig(n_steps=20, batch_size=8),
        optimizer=OptimizerConfig(warmup_steps=0), snapshots=SnapshotConfig(n_linear=2, n_log=0),
    )  # fmt: skip
    corpus = open_corpus(config)
    labels = corpus.held_out_labels(5) if corpus.label_names else None
    held_out = HeldOut(corpus.held_out(5), corpus.probe_tokens(), corpus.bos_id, None, corpus.label_names, labels)
    run = RunDir.create(str(folder / "runs" / name), config, corpus_sha256="0" * 64, held_out=held_out)
    for step in (0, 10, 20):
        run.save_snapshot(step, {key: np.asarray(value) for key, value in random_params(model, step).items()})
    analyze(run, only=wanted)
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    for name in TASKS:
        make_run(path, name)
    return path


def drawn(folder: Path, name: str, figure: RunFigure, out: Path) -> tuple[ReportedRun, dict[str, np.ndarray]]:
    """The run, and label -> heights of the curves that its figure draws, in all of its charts."""
    run = ReportedRun(RunDir.open(str(folder / "runs" / name)), name)
    png, _, table = save_figure(figure, [run], out)
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    header, *rows = table.read_text(encoding="utf-8").splitlines()
    assert header == "run,chart,series,x,y"
    panels = figure.panels([run])
    assert len(rows) == sum(len(series.x) for panel in panels for series in panel.chart.series)
    return run, {f"{panel.chart.title}: {series.label}": series.y for panel in panels for series in panel.chart.series}


def test_the_picture_of_markov_chains_shows_the_analysis(folder: Path, tmp_path: Path) -> None:
    run, lines = drawn(folder, "markov-3", markov.FIGURE, tmp_path)
    data = run.data
    for i, name in enumerate(("uniform", "unigram", "bigram")):
        np.testing.assert_array_equal(lines[f"distance from each strategy: {name}"], data["strategy_kl"].values[:, i])
    before, after = (data[name].values for name in ("previous_token", "match_attention"))
    attention = "attention; dashed: uniform"
    best, matching = before[-1, 0].argmax(), after[-1, 1].argmax()
    np.testing.assert_array_equal(lines[f"{attention}: to the token before, head 0.{best}"], before[:, 0, best])
    name = f"{attention}: to what followed the same before, head 1.{matching}"
    np.testing.assert_array_equal(lines[name], after[:, 1, matching])


def test_the_picture_of_triggers_shows_the_analysis(folder: Path, tmp_path: Path) -> None:
    run, lines = drawn(folder, "triggers-5", triggers.FIGURE, tmp_path)
    data = run.data
    accuracy = "memory recall; dots: formed: accuracy after a trigger seen before"
    np.testing.assert_array_equal(lines[accuracy], data["label_top1"].values[:, 1])
    np.testing.assert_array_equal(lines["loss: after a trigger new in the row"], data["label_loss"].values[:, 0])
    np.testing.assert_array_equal(lines["loss: after a trigger seen before"], data["label_loss"].values[:, 1])
    np.testing.assert_array_equal(lines["loss: all tokens"], data["loss_curve"].values)
    for text, values in zip(("W_O²", "W_K²", "W_K¹"), best_memories(data).values(), strict=True):
        (shown,) = (heights for label, heights in lines.items() if f"dots: formed: {text}" in label)
        np.testing.assert_array_equal(shown, values)


def test_the_picture_of_classes_shows_the_analysis(folder: Path, tmp_path: Path) -> None:
    run, lines = drawn(folder, "classes-icl", classes.FIGURE, tmp_path)
    data = run.data
    for i, name in enumerate(("new classes, in the", "known classes, labels swapped", "known classes, not in")):
        (shown,) = (heights for label, heights in lines.items() if name in label)
        np.testing.assert_array_equal(shown, data["label_top1"].values[:, i])
    assert any(np.all(heights == 0.25) for heights in lines.values())  # two of eight
    matching = data["label_matching"].values[:, 0].reshape(3, -1)
    (shown,) = (heights for label, heights in lines.items() if "same last letter" in label)
    np.testing.assert_array_equal(shown, matching[:, matching[-1].argmax()])


def test_memories_by_hand() -> None:
    head = ("snapshot", "layer", "head")
    output = np.zeros((4, 2, 2))
    output[:, 0, 0] = 1  # layer 0 does not count
    output[:, 1, 1] = 0.1, 0.3, 0.1, 0.4
    output[:, 1, 0] = 0.9, 0.9, 0.9, 0.2
    trigger = np.full((4, 2, 2, 2, 2), np.nan)
    trigger[:, 0, :, 1, :] = 0
    trigger[:, 0, 1, 1, 0] = 0.2, 0.8, 1, 1
    previous = np.zeros((4, 2, 2))
    previous[:, 0, 1] = 0.1
    previous[:, 1] = 1
    pair = ("snapshot", "layer_src", "head_src", "layer_dst", "head_dst")
    data = xr.Dataset(
        {"output_recall": (head, output), "trigger_recall": (pair, trigger), "previous_recall_early": (head, previous)}
    )
    found = best_memories(data)
    np.testing.assert_array_equal(found["output_recall"], output[:, 1, 1])
    np.testing.assert_array_equal(found["trigger_recall"], trigger[:, 0, 1, 1, 0])
    np.testing.assert_array_equal(found["previous_recall_early"], previous[:, 0, 1])
    assert formed_at(data) == {"output_recall": 3, "trigger_recall": 2, "previous_recall_early": None}
    assert strategy_names(5) == ["uniform", "unigram", "bigram", "3-gram", "4-gram"]


def test_what_was_not_measured_and_what_is_of_another_corpus_are_gaps(folder: Path, tmp_path: Path) -> None:
    run = ReportedRun(RunDir.open(str(folder / "runs" / "markov-3")), "chains")
    (panel,) = triggers.FIGURE.panels([run])
    assert panel.chart == Gap("data.source is markov, not triggers")
    assert save_figure(triggers.FIGURE, [run], tmp_path) == []
    del run.data["strategy_kl"]
    run.data.attrs["absent"] = json.dumps({"markov_strategies": "not taken: icl-jax analyze RUN takes it"})
    assert markov.FIGURE.panels([run])[0].chart == Gap("not taken: icl-jax analyze RUN takes it")
    assert list(tmp_path.iterdir()) == []


def test_the_page_on_tasks_runs_as_it_stands(
    checkout: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").symlink_to(folder / "runs")
    monkeypatch.chdir(tmp_path)
    page = (checkout / "docs" / "tasks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/tasks.md", "exec"), {})
    assert {path.name for path in tmp_path.glob("*.png")} == {"markov.png", "triggers.png", "classes.png"}
