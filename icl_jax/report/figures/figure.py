"""What a figure is: captions, what it needs of an analysis, and a function from a run, or all of them, to a chart."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.reported_run import ReportedRun, signed

TOKENS = Axis(label="training tokens", is_tokens=True)
SHARE = (0.0, 1.04)
"""The range of an axis of shares: a curve at 1 is seen, and can be clicked."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One cell of the model-analysis table."""

    run: ReportedRun | None
    """None: all runs in one chart."""
    chart: Chart | Gap
    ours: str
    """The number to hold against the paper's; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigure:
    """A row of the table: one chart per run."""

    name: str
    """Stem of its files, and its anchor on the page."""
    title: str
    shows: str
    look_for: str
    paper: str = ""
    """What the paper reports, only where it states it; empty: its figure gives no number to hold ours against."""
    needs: tuple[str, ...]
    """Variables of analysis.zarr; where one is absent, its reason stands in place of the chart."""
    chart: Callable[[ReportedRun], Chart | Gap]
    ours: Callable[[ReportedRun], str] = lambda _run: ""

    def panels(self, runs: list[ReportedRun]) -> list[Panel]:
        panels = []
        for run in runs:
            chart = run.gap(*self.needs) or self.chart(run)
            panels.append(Panel(run, chart, "" if isinstance(chart, Gap) else self.ours(run)))
        return panels


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonFigure:
    """One chart of all runs."""

    name: str
    title: str
    shows: str
    look_for: str
    paper: str = ""
    chart: Callable[[list[ReportedRun]], Chart | Gap]

    def panels(self, runs: list[ReportedRun]) -> list[Panel]:
        return [Panel(None, self.chart(runs), "")]


Figure = RunFigure | ComparisonFigure


def head_curves(run: ReportedRun, variable: str, label: str, *, range: tuple[float, float] | None = None) -> Chart:
    """A curve over training for each head, at the snapshots or the `selected` ones."""
    data = run.data[variable]
    tokens = run.data["selected_tokens"].values if "selected" in data.dims else run.tokens
    series = [
        Series(
            label=f"head {layer}.{head}", x=tokens, y=data.values[:, layer, head], head=(layer, head),
            role=run.roles[layer, head],
        )
        for layer, head in run.heads
    ]  # fmt: skip
    return Chart(x=TOKENS, y=Axis(label=label, range=range), series=series, band=run.band, zero=range is None)


def head_dots(
    run: ReportedRun, x: np.ndarray, y: np.ndarray, x_axis: Axis, y_axis: Axis, *, labelled: bool = False
) -> Chart:
    """A dot for each head, at [layer, head] of both arrays; those of a kind may carry their names."""
    series = [
        Series(
            label=f"head {layer}.{head}", x=x[layer, head][None], y=y[layer, head][None], dots=True,
            head=(layer, head), role=run.roles[layer, head],
            text=f"{layer}.{head}" if labelled and run.roles[layer, head] != "other" else "",
        )
        for layer, head in run.heads
    ]  # fmt: skip
    return Chart(x=x_axis, y=y_axis, series=series)


def best_head(run: ReportedRun, variable: str) -> str:
    """The highest at the end: its value, and whose."""
    scores = run.last(variable)
    layer, head = np.unravel_index(np.nanargmax(scores), scores.shape)
    return f"{scores[layer, head]:.2f} (head {layer}.{head})"


def before_after(run: ReportedRun, variable: str) -> str:
    """A [snapshot] variable at the ends of the phase change."""
    if run.window is None:
        return ""
    before, after = (float(run.at(variable, step)) for step in run.window)
    return f"{signed(before)} → {signed(after)}"


def log_positions(n_ctx: int, at_most: int = 96) -> np.ndarray:
    """Position indexes, evenly spaced in the logarithm of the index of the token that is predicted."""
    return np.unique(np.round(np.geomspace(1, n_ctx, at_most)).astype(int)) - 1


def strongest_ablation(run: ReportedRun, variable: str, sign: int, unit: str) -> str:
    """The head with the largest effect of that sign at the end of the phase change."""
    if run.window is None:
        return ""
    effect = run.at(variable, run.window[1])
    layer, head = np.unravel_index(np.argmax(sign * effect), effect.shape)
    return f"strongest after the change {signed(effect[layer, head])}{unit} (head {layer}.{head})"
