"""What a figure shows, as plain arrays: the page, the pictures and the CSV files are all drawn from it."""

import html
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Role = Literal["induction", "previous", "other", ""]
"""What a head does at the end of training; the papers' figures colour heads by it. Empty: not a head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: its label with the unit, and its scale."""

    label: str
    is_log: bool = False
    is_tokens: bool = False
    """Counts training tokens: the phase change is marked on it."""
    is_count: bool = False
    """Takes whole numbers alone, such as layers."""
    column: str = ""
    """Its name in CSV files; empty: the label."""
    range: tuple[float, float] | None = None
    """In the units of the axis; None: what the data needs."""
    names: tuple[str, ...] = ()
    """Of the values 0, 1, ..., where it is no scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve, one set of dots or of bars. Arrays of one length; NaN breaks a line."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    """Lower and upper end of an interval around y."""
    high: np.ndarray | None = None
    dots: bool = False
    bars: bool = False
    """Beside those of the other series."""
    node: bool = False
    """Dots so large that `text` stands inside them."""
    head: tuple[int, int] | None = None
    """Layer and head: a click isolates the head in every figure of its model."""
    member: str = ""
    """Name of a member of a run, RUN/members/K: a click opens it."""
    role: Role = ""
    colour: int = 0
    """Index into the colours of the report, for what is no head."""
    model: int | None = None
    """Index of the model among those of the chart: dashes and marks tell up to 12 apart where there is no colour."""
    width: float = 1.5
    """Of the line; dots grow with it."""
    dashed: bool = False
    text: str = ""
    """Written beside the last point."""
    in_legend: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A matrix as colours, z [y, x]."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    label: str
    """What the colour means, with the unit."""
    diverging: bool = False
    """Colours run to both sides of 0."""
    range: tuple[float, float] | None = None
    """That the colours span; None: what the data needs."""
    heads: bool = False
    """x is the head, y the layer: a click isolates it."""


@dataclass(frozen=True, slots=True)
class Band:
    """One abrupt change of the ICL score, in training tokens."""

    start: float
    end: float
    """The run's own end where the change is still going on."""
    start_interval: tuple[float, float]
    """90 % interval."""
    end_interval: tuple[float, float]
    is_open: bool
    """Still going on where the run ends."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Training tokens in which an intervention was on."""

    start: float
    end: float
    what: str
    """In words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One panel: curves and dots, or a matrix."""

    x: Axis
    y: Axis
    title: str = ""
    """Only where a figure has several charts of a run."""
    wide: bool = False
    """Fills a row of its own."""
    series: list[Series] = field(default_factory=list)
    heat: Heat | None = None
    bands: tuple[Band, ...] = ()
    """Drawn where an axis counts training tokens."""
    intervened: tuple[Stretch, ...] = ()
    """The same."""
    zero: bool = False
    """A line at y = 0."""
    legend: bool = False

    def _repr_html_(self) -> str:
        """The chart as a picture, in a notebook."""
        from icl_jax.report.pictures import chart_html

        return chart_html(self)


@dataclass(frozen=True, slots=True)
class Gap:
    """Stands where a chart cannot: the reason, a sentence."""

    why: str

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.why)}</p>"


@dataclass(frozen=True, slots=True)
class Value:
    """Stands where a chart would have one point: what it is, in words."""

    text: str

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.text)}</p>"


def table_of(chart: Chart) -> tuple[list[str], list[list[object]]]:
    """The numbers of a chart, one row per point: header and rows, in the order that they are drawn."""
    columns = [axis.column or axis.label for axis in (chart.x, chart.y)]
    if chart.heat is not None:
        heat = chart.heat
        cells: list[list[object]] = [
            [float(x), float(y), float(heat.z[i, j])] for i, y in enumerate(heat.y) for j, x in enumerate(heat.x)
        ]
        return [*columns, heat.label], cells
    has_interval = any(series.low is not None for series in chart.series)
    header = ["series", *columns, *(("low", "high") if has_interval else ())]
    rows: list[list[object]] = []
    for series in chart.series:
        for i in range(len(series.x)):
            x = chart.x.names[int(series.x[i])] if chart.x.names else float(series.x[i])
            row: list[object] = [series.label, x, float(series.y[i])]
            if has_interval:
                row += ["", ""] if series.low is None or series.high is None else [
                    float(series.low[i]), float(series.high[i]),
                ]  # fmt: skip
            rows.append(row)
    return header, rows
