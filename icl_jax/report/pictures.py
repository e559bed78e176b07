"""The figures as PNG and PDF for papers, and their numbers as CSV."""

import base64
import csv
import html
import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np

from icl_jax.report.chart import Band, Chart, Series, table_of
from icl_jax.report.figures.figure import Figure, Panel
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.suite.phase_change import COLOURS

_ROLES = {"induction": "#D55E00", "previous": "#0072B2", "other": "#9AA0A8"}
_BAND, _NO_BAND = "#E69F00", "#9AA0A8"
_DIVERGING = ("#0072B2", "#F7F7F7", "#D55E00")
_PER_ROW = 4
_STYLE: Any = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "pdf.fonttype": 42,
    # Run names and tokens are text, whatever dollars they hold.
    "text.parse_math": False,
}  # fmt: skip


def save_figure(figure: Figure, runs: list[ReportedRun], folder: Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv, all panels in each; nothing where every panel is a gap."""
    panels = figure.panels(runs)
    charts = [(panel, panel.chart) for panel in panels if isinstance(panel.chart, Chart)]
    if not charts:
        return []
    paths = [folder / f"{figure.name}.{kind}" for kind in ("png", "pdf", "csv")]
    _draw(figure, charts, paths[:2])
    _save_csv(charts, paths[2])
    return paths


def _save_csv(charts: list[tuple[Panel, Chart]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *table_of(charts[0][1])[0]])
        for panel, chart in charts:
            _, rows = table_of(chart)
            writer.writerows([panel.run.name if panel.run else "all", *row] for row in rows)


def _draw(figure: Figure, panels: list[tuple[Panel, Chart]], paths: list[Path]) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    n_columns = min(_PER_ROW, len(panels))
    n_rows = -(-len(panels) // n_columns)
    size = (6.5, 3.6) if panels[0][0].run is None else (2.7 * n_columns + 0.4, 2.3 * n_rows + 0.3)
    with plt.rc_context(_STYLE):
        drawn, grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
        for axes, (panel, chart) in zip(grid.flat, panels, strict=False):
            axes.set_title(panel.run.name if panel.run else "", loc="left", fontsize=8)
            _draw_chart(axes, chart)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        drawn.suptitle(figure.title, fontsize=9)
        drawn.draw_without_rendering()
        drawn.set_layout_engine("none")  # laid out once, not for each kind of file
        for path in paths:
            drawn.savefig(path, dpi=160)
        plt.close(drawn)


def chart_html(chart: Chart) -> str:
    """One chart as an HTML image that holds its PNG."""
    # A figure of its own: pyplot's would be shown a second time, and would need its backend changed.
    with mpl.rc_context(_STYLE):
        drawn = mpl.figure.Figure(figsize=(4.5, 2.8), layout="constrained")
        _draw_chart(drawn.subplots(), chart)
        png = io.BytesIO()
        drawn.savefig(png, dpi=110, format="png")
    data = base64.b64encode(png.getvalue()).decode()
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(chart.y.label)} by {html.escape(chart.x.label)}">'
    )


def _draw_chart(axes: Any, chart: Chart) -> None:
    if chart.heat is not None:
        _draw_heat(axes, chart)
    for series in chart.series:
        _draw_series(axes, series)
    if chart.zero:
        axes.axhline(0, color="#999999", lw=0.6, zorder=0)
    if chart.band is not None and chart.x.is_tokens:
        _draw_band(axes, chart.band, is_heat=chart.heat is not None)
    for axis, which in ((chart.x, "x"), (chart.y, "y")):
        getattr(axes, f"set_{which}label")(axis.label)
        if axis.is_log:
            getattr(axes, f"set_{which}scale")("log")
            getattr(axes, f"{which}axis").set_major_formatter("{x:g}")
        if axis.is_count:
            getattr(axes, f"{which}axis").set_major_locator(mpl.ticker.MultipleLocator())
        if axis.range is not None:
            getattr(axes, f"set_{which}lim")(axis.range)
    if chart.x.is_tokens:
        axes.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    if chart.legend:
        axes.legend(frameon=False, fontsize=6)


def _draw_heat(axes: Any, chart: Chart) -> None:
    heat = chart.heat
    assert heat is not None
    limits: dict[str, Any] = {"cmap": "cividis"}
    if heat.diverging:
        most = float(np.nanmax(np.abs(heat.z))) or 1.0
        colours = mpl.colors.LinearSegmentedColormap.from_list("diverging", _DIVERGING)
        limits = {"cmap": colours, "vmin": -most, "vmax": most}
    mesh = axes.pcolormesh(heat.x, heat.y, heat.z, shading="nearest", rasterized=True, **limits)
    axes.figure.colorbar(mesh, ax=axes, label=heat.label, pad=0.02)


def _draw_series(axes: Any, series: Series) -> None:
    colour = _ROLES[series.role] if series.role else COLOURS[series.colour % len(COLOURS)]
    if series.dots:
        axes.plot(series.x, series.y, "o", color=colour, ms=13 if series.node else 4, zorder=3)
    else:
        style = "--" if series.dashed else "-"
        axes.plot(
            series.x,
            series.y,
            style,
            color=colour,
            lw=0.7 * series.width,
            label=series.label if series.in_legend else None,
        )
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.2, lw=0)
    if series.node:
        axes.annotate(
            series.text, (series.x[-1], series.y[-1]), ha="center", va="center", fontsize=6, color="white", zorder=4
        )
    elif series.text:
        axes.annotate(
            series.text, (series.x[-1], series.y[-1]), (0, 4), textcoords="offset points", ha="center", fontsize=6
        )


def _draw_band(axes: Any, band: Band, *, is_heat: bool) -> None:
    is_change = band.forms is not False
    colour = _BAND if is_change else _NO_BAND
    if is_heat:
        for edge in (band.start, band.end):
            axes.axvline(edge, color=colour, lw=1, ls="-" if is_change else ":")
    else:
        axes.axvspan(band.start, band.end, color=colour, alpha=0.2 if is_change else 0.12, lw=0, zorder=0)
    for interval in (band.start_interval, band.end_interval):
        if interval is not None:
            above = axes.get_xaxis_transform()
            axes.plot(interval, (1.015, 1.015), color=colour, lw=1.5, transform=above, clip_on=False)
