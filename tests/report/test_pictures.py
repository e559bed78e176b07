"""Pictures of what charts can be: ticks, numbers, names, and models that are told apart without colours."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pytest

from icl_jax.config import Config, TrainConfig
from icl_jax.report import pictures
from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import Panel
from icl_jax.report.seeds import MOST, choose


def _drawn(chart: Chart, *, is_beside: bool = True, size: tuple[float, float] = (4, 3)) -> Any:
    with mpl.rc_context(pictures._STYLE):
        figure = mpl.figure.Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        pictures._draw_chart(axes, chart)
        if chart.legend:
            pictures._draw_legend(axes, is_beside=is_beside)
        figure.draw_without_rendering()
    return axes


def _chart(x: Axis, low: float, high: float, **more: Any) -> Chart:
    series = [Series(label="a", x=np.linspace(low, high, 20), y=np.linspace(0, 1, 20))]
    return Chart(x=x, y=Axis(label="y"), **{"series": series, **more})


def _labels(axes: Any) -> list[str]:
    low, high = axes.get_xlim()
    return [
        text.get_text()
        for text, place in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)
        if low <= place <= high
    ] + [text.get_text() for text in axes.get_xticklabels(minor=True) if text.get_text()]


@pytest.mark.parametrize(("low", "high"), [(1, 8), (2, 3), (1, 17), (1, 2048), (1.5e5, 2.5e5), (1e3, 5e6), (8e4, 3e5)])
def test_a_logarithmic_axis_has_ticks_however_short(low: float, high: float) -> None:
    labels = _labels(_drawn(_chart(Axis(label="x", is_log=True), low, high)))
    assert len(labels) >= 2
    assert not [label for label in labels if "$" in label or "e+" in label or "math" in label]


@pytest.mark.parametrize(("high", "unit"), [(900.0, ""), (9e5, "k"), (5e6, "M"), (1.2e6, "M"), (3e9, "B")])
def test_numbers_of_an_axis_of_tokens_have_one_form(high: float, unit: str) -> None:
    labels = _labels(_drawn(_chart(Axis(label="x", is_tokens=True), 0, high)))
    assert {label.lstrip("−0123456789.") for label in labels if label not in ("0", "−0")} == {unit}


def test_names_of_all_kinds_stand_in_the_legend_beside_the_chart() -> None:
    names = ["_hidden", "x" * 240 + "end", "$HOME", "run"]
    series = [Series(label=name, x=np.arange(3.0), y=np.arange(3.0), model=i) for i, name in enumerate(names)]
    axes = _drawn(Chart(x=Axis(label="x"), y=Axis(label="y"), series=series, legend=True))
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown[0] == "_hidden"
    assert shown[2:] == names[2:]
    assert len(shown[1]) == pictures._LEGEND_CHARS
    assert shown[1].endswith("end")
    # Over no curve: to the right of the axes.
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1
    below = _drawn(Chart(x=Axis(label="x"), y=Axis(label="y"), series=series, legend=True), is_beside=False)
    assert below.get_legend().get_window_extent().y1 <= below.get_window_extent().y0


def test_twelve_models_are_told_apart_without_colours() -> None:
    series = [Series(label=str(i), x=np.arange(9.0), y=np.full(9, i), colour=i, model=i) for i in range(MOST)]
    axes = _drawn(Chart(x=Axis(label="x"), y=Axis(label="y"), series=series))
    styles = {(str(line._unscaled_dash_pattern), line.get_marker()) for line in axes.get_lines()}
    assert len(styles) == MOST == 12


@dataclass(frozen=True)
class _Run:
    name: str
    config: Config


def test_of_many_runs_one_of_each_config_is_shown_first() -> None:
    config = Config()
    runs = [
        _Run(f"{n_steps}-{seed}", replace(config, train=TrainConfig(n_steps=n_steps, seed=seed)))
        for n_steps in range(200, 210)
        for seed in range(30)
    ]
    shown = [run.name for run in choose(runs)]  # type: ignore[arg-type]
    assert shown == ["200-0", "200-1", "200-2", *(f"{n_steps}-0" for n_steps in range(201, 210))]
    assert choose(runs[:12]) == runs[:12]  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(2.7, 1.6), (4, 3), (6.5, 6.5)])
def test_a_legend_below_hides_neither_the_numbers_of_the_axis_nor_its_label(size: tuple[float, float]) -> None:
    chart = _chart(Axis(label="token index", is_log=True), 1, 128, legend=True)
    axes = _drawn(chart, is_beside=False, size=size)
    legend = axes.get_legend().get_window_extent()
    below_axis = [axes.xaxis.label, *(text for text in axes.get_xticklabels() if text.get_text())]
    assert legend.y1 < min(text.get_window_extent().y0 for text in below_axis)
    assert legend.y0 > 0


def test_titles_of_charts_that_stand_in_a_row_do_not_run_into_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "repeats: a previous-token head given in layer 0",
        "stories-" + "x" * 90,
        "repeats",
        "optimizer.lr=0.001,model.n_layers=2",
        "a b " * 20,
    ]
    charts = [
        (Panel(run=SimpleNamespace(name=name), chart=(chart := _chart(Axis(label="x"), 0, 1))), chart) for name in names
    ]
    drawn: list[Any] = []
    monkeypatch.setattr("matplotlib.pyplot.close", drawn.append)
    pictures._draw("many", charts, [tmp_path / "a.png"])
    (figure,) = drawn
    titles = [axes._left_title for axes in figure.axes]
    boxes = [title.get_window_extent() for title in titles]
    assert titles[0].get_text().replace("\n", " ") == names[0]
    for left, right in pairwise(boxes[:4]):
        assert left.x1 < right.x0
    assert boxes[3].x1 <= figure.bbox.x1
    assert boxes[4].y1 < figure.axes[0].get_window_extent().y0
