"""What a figure is: captions, what it needs of an analysis, and a function from a run, or all of them, to charts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from icl_jax.report.chart import Axis, Chart, Gap, Heat, Series, Value
from icl_jax.report.reported_run import ReportedRun, signed

TOKENS = Axis(label="training tokens", is_tokens=True)
SHARE = (0.0, 1.04)
"""The range of an axis of shares: a curve at 1 is seen, and can be clicked."""


_NUMBERED = 16


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a figure."""

    run: ReportedRun | None
    """None: of all runs."""
    chart: Chart | Gap | Value
    ours: str = ""
    """The number to hold against the paper's; empty where there is none."""


class Drawable(Protocol):
    """A figure of whatever kind of runs, as pictures and page draw it."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def shows(self) -> str: ...
    @property
    def look_for(self) -> str: ...
    @property
    def paper(self) -> str: ...
    def panels(self, runs: Any) -> list[Panel]:
        """Its charts, or why there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions:
    """What every figure says of itself."""

    name: str
    """Stem of its files, and its anchor on the page."""
    title: str
    shows: str
    look_for: str
    paper: str = ""
    """What the paper reports, only where it states it; empty: its figure gives no number to hold ours against."""
    needs: tuple[str, ...]
    """Variables of analysis.zarr; where one is absent, its reason stands in place of the chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigure(Captions):
    """A row of the model-analysis table: one chart per run, or several that belong together."""

    source: str = ""
    """The data.source of the runs that it is of; empty: any. Without such a run the page does not have the figure."""
    on_request: bool = False
    """What it needs is measured by name alone: the page has it where a run has that."""
    chart: Callable[[ReportedRun], Chart | Gap | Value | list[Chart]]
    ours: Callable[[ReportedRun], str] = lambda _run: ""

    def is_shown(self, runs: list[ReportedRun]) -> bool:
        """Whether the page has it."""
        is_there = not self.on_request or any(run.has(*self.needs) for run in runs)
        return is_there and any(self.is_of(run.config.data.source) for run in runs)

    def is_of(self, source: str) -> bool:
        return self.source in ("", source)

    def panels(self, runs: list[ReportedRun]) -> list[Panel]:
        return [panel for run in runs for panel in self._of_run(run)]

    def _of_run(self, run: ReportedRun) -> list[Panel]:
        source = run.config.data.source
        other = None if self.is_of(source) else Gap(f"data.source is {source}, not {self.source}")
        found = other or run.gap(*self.needs) or self.chart(run)
        if isinstance(found, Gap):
            return [Panel(run, found)]
        *first, last = [
            replace(chart, intervened=run.intervened) if isinstance(chart, Chart) and chart.x.is_tokens else chart
            for chart in (found if isinstance(found, list) else [found])
        ]
        return [*(Panel(run, chart) for chart in first), Panel(run, last, self.ours(run))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonFigure(Captions):
    """One chart of all runs that have what it needs, or several."""

    chart: Callable[[list[ReportedRun]], Chart | Gap | list[Chart]]

    def panels(self, runs: list[ReportedRun]) -> list[Panel]:
        lacking = {run.name: gap.why for run in runs if (gap := run.gap(*self.needs)) is not None}
        having = [run for run in runs if run.name not in lacking]
        reasons = [f"{name}: {why}" for name, why in lacking.items()]
        found = self.chart(having) if having else Gap(next(iter(lacking.values())))
        if isinstance(found, Gap):
            return [Panel(None, Gap("; ".join([found.why, *reasons])) if having else found)]
        return [Panel(None, chart) for chart in (found if isinstance(found, list) else [found])]


Figure = RunFigure | ComparisonFigure


def head_figure(
    variable: str, label: str, *, range: tuple[float, float] | None = None,
    ours: Callable[[ReportedRun], str] | None = None, **captions: Any,
) -> RunFigure:  # fmt: skip
    """A [snapshot or selected, layer, head] variable as a curve for each head; `ours`: the highest at the end.

    Of a single snapshot it is a map, layer by head.
    """
    return RunFigure(
        needs=(variable,), chart=lambda run: head_curves(run, variable, label, range=range),
        ours=ours or (lambda run: f"highest at the end {best_head(run, variable)}"), **captions,
    )  # fmt: skip


def ablation_figure(variable: str, label: str, *, sign: int, unit: str = "", **captions: Any) -> RunFigure:
    """The same of an effect of ablations; `ours`: the largest of that sign at the end of the phase change."""
    return head_figure(variable, label, ours=lambda run: strongest_ablation(run, variable, sign, unit), **captions)


def head_curves(run: ReportedRun, variable: str, label: str, *, range: tuple[float, float] | None = None) -> Chart:
    """A curve over training for each head, at the snapshots or the `selected` ones."""
    data = run.data[variable]
    if len(data) == 1:
        return head_map(data.values[0], label, range=range)
    tokens = run.data["selected_tokens"].values if "selected" in data.dims else run.tokens
    series = [
        Series(
            label=f"head {layer}.{head}", x=tokens, y=data.values[:, layer, head], head=(layer, head),
            role=run.roles[layer, head],
        )
        for layer, head in run.heads
    ]  # fmt: skip
    return Chart(x=TOKENS, y=Axis(label=label, range=range), series=series, bands=run.bands, zero=range is None)


def head_map(values: np.ndarray, label: str, *, range: tuple[float, float] | None = None) -> Chart:
    """[layer, head] values as colours."""
    n_layers, n_heads = values.shape
    heat = Heat(
        x=np.arange(n_heads), y=np.arange(n_layers), z=values, label=label, diverging=range is None, range=range,
        heads=True,
    )  # fmt: skip
    # Few are numbered one by one.
    return Chart(
        x=Axis(label="head", is_count=n_heads <= _NUMBERED), y=Axis(label="layer", is_count=n_layers <= _NUMBERED),
        heat=heat,
    )  # fmt: skip


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


def change_stretch(run: ReportedRun, y: np.ndarray, colour: int) -> list[Series]:
    """The thick stretches of a [snapshot] curve that are phase changes."""
    label = f"{run.name}: phase change"
    stretches = (run.stretch(band, y) for band in run.bands)
    return [Series(label=label, x=x, y=y_there, colour=colour, width=5, in_legend=False) for x, y_there in stretches]


def level(run: ReportedRun, y: float, **of_series: Any) -> Series:
    """A dashed line across the snapshots of a run."""
    tokens = run.tokens[[0, -1]]
    return Series(x=tokens, y=np.full(2, y), dashed=True, width=1, **of_series)


def best_head(run: ReportedRun, variable: str) -> str:
    """The highest at the end: its value, and whose."""
    scores = run.last(variable)
    layer, head = np.unravel_index(np.nanargmax(scores), scores.shape)
    return f"{scores[layer, head]:.2f} (head {layer}.{head})"


def before_after(run: ReportedRun, variable: str) -> str:
    """A [snapshot] variable before and after the phase change; without one, at a tenth of the run and at its end."""
    if run.is_single:
        return signed(float(run.last(variable)))
    if run.window is None:
        return ""
    before, after = (float(run.at(variable, step)) for step in run.window)
    return f"{signed(before)} → {signed(after)}"


def log_positions(n_ctx: int, at_most: int = 96) -> np.ndarray:
    """Position indexes, evenly spaced in the logarithm of the index of the token that is predicted."""
    return np.unique(np.round(np.geomspace(1, n_ctx, at_most)).astype(int)) - 1


def strongest_ablation(run: ReportedRun, variable: str, sign: int, unit: str) -> str:
    """The head with the largest effect of that sign after the phase change."""
    if run.window is None:
        return ""
    effect = run.at(variable, run.window[1])
    layer, head = np.unravel_index(np.argmax(sign * effect), effect.shape)
    return f"strongest after the change {signed(effect[layer, head])}{unit} (head {layer}.{head})"
