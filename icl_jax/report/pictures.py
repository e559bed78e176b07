"""The figures as PNG and PDF for papers, and their numbers as CSV."""

import base64
import csv
import html
import io
import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import matplotlib.transforms
import numpy as np

from icl_jax.report.chart import Axis, Band, Chart, Series, table_of
from icl_jax.report.figures.figure import Drawable, Panel
from icl_jax.telling import shortened

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_ROLES = {"induction": "#D55E00", "previous": "#0072B2", "other": "#9AA0A8"}
_BAND = "#E69F00"
_INTERVENED = "#555555"
_DIVERGING = ("#0072B2", "#F7F7F7", "#D55E00")
# Of models: each of 12 has dashes or marks of its own.
_DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
_MARKS = ("", "o", "^")
_N_MARKS = 9
_BARS = 0.8
"""Of the distance from a group of bars to the next."""
_PER_ROW = 4
_UNDER_AXIS_POINTS = 26
_TITLE_CHARS, _NARROW_CHARS, _LEGEND_CHARS = 40, 24, 48
_STYLE: Any = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "pdf.fonttype": 42,
    # Run names and tokens are text, whatever dollars they hold.
    "text.parse_math": False,
}  # fmt: skip


def save_figure(figure: Drawable, runs: list[Any], folder: Path) -> list[Path]:
    """Write NAME.png, NAME.pdf and NAME.csv, all charts in each; nothing where every panel is a gap."""
    charts = _charts(figure, runs)
    if not charts:
        return []
    paths = [folder / f"{figure.name}.{kind}" for kind in ("png", "pdf", "csv")]
    _draw(figure.title, charts, paths[:2])
    _save_csv(charts, paths[2])
    return paths


def save_picture(figure: Drawable, runs: list[Any], path: Path) -> bool:
    """Write one file, as its suffix says (PNG, PDF, SVG); False, and nothing, where every panel is a gap."""
    charts = _charts(figure, runs)
    if charts:
        _draw(figure.title, charts, [path])
    return bool(charts)


def save_charts(title: str, charts: list[Chart], path: Path) -> None:
    """Write charts that are of no figure of the table side by side, as the suffix says (PNG, PDF, SVG)."""
    _draw(title, [(Panel(run=None, chart=chart), chart) for chart in charts], [path])


def _charts(figure: Drawable, runs: list[Any]) -> list[tuple[Panel, Chart]]:
    return [(panel, panel.chart) for panel in figure.panels(runs) if isinstance(panel.chart, Chart)]


def _save_csv(charts: list[tuple[Panel, Chart]], path: Path) -> None:
    """A row for each point. Where the charts have other axes they are named in a column, and the axes x and y."""
    tables = [table_of(chart) for _, chart in charts]
    headers = [header for header, _ in tables]
    is_alike = all(header == headers[0] for header in headers)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *headers[0]] if is_alike else ["run", "chart", "series", "x", "y"])
        for (panel, chart), (_, rows) in zip(charts, tables, strict=True):
            which = [panel.run.name if panel.run else "all"]
            which += [] if is_alike else [f"{chart.title}: {chart.y.label} by {chart.x.label}"]
            writer.writerows([*which, *row] for row in rows)


def _grid(charts: list[tuple[Panel, Chart]]) -> list[list[tuple[Panel, Chart]]]:
    """Rows of charts: a wide one fills one of its own, the several of a run stand in one, others are four in one."""
    several = len(charts) > len({panel.run.name if panel.run else "all" for panel, _ in charts})
    rows: list[list[tuple[Panel, Chart]]] = []
    for panel, chart in charts:
        last = rows[-1][-1] if rows else None
        if (
            last is None or chart.wide or last[1].wide or len(rows[-1]) == _PER_ROW
            or (several and panel.run is not last[0].run)
        ):  # fmt: skip
            rows.append([])
        rows[-1].append((panel, chart))
    return rows


def _draw(title: str, charts: list[tuple[Panel, Chart]], paths: list[Path]) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = _grid(charts)
    n_columns = max(len(row) for row in rows)
    is_titled = any(chart.title for _, chart in charts)
    if len(charts) == 1 and charts[0][0].run is None:
        size = (6.5, 3.6)
    else:
        width, height = (3.4, 3.2) if is_titled and n_columns < _PER_ROW else (2.7, 2.3)
        size = (max(6.5, width * n_columns + 0.4) if is_titled else width * n_columns + 0.4, height * len(rows) + 0.3)
    heights = [1.4 if row[0][1].wide else 1 for row in rows]
    with plt.rc_context(_STYLE):
        drawn = plt.figure(figsize=size, layout="constrained")
        grid = drawn.add_gridspec(len(rows), n_columns, height_ratios=heights)
        for i, row in enumerate(rows):
            for j, (panel, chart) in enumerate(row):
                axes = drawn.add_subplot(grid[i, :] if chart.wide else grid[i, j])
                parts = [panel.run.name if panel.run else "", chart.title]
                # A chart of its own has more room than one of a few, and that more than one of four.
                most = _NARROW_CHARS if n_columns == _PER_ROW else _TITLE_CHARS
                most = 2 * _TITLE_CHARS if chart.wide or len(charts) == 1 else most
                name = shortened(": ".join(part for part in parts if part), 2 * most)
                title_lines = textwrap.wrap(name, most, break_on_hyphens=False)
                axes.set_title("\n".join(title_lines), loc="left", fontsize=8)
                _draw_chart(axes, chart)
                if chart.legend:
                    _draw_legend(axes, is_beside=chart.wide or len(charts) == 1)
        drawn.suptitle(title, fontsize=9)
        layout = drawn.get_layout_engine()
        assert layout is not None
        layout.execute(drawn)
        drawn.set_layout_engine("none")  # laid out once, not for each kind of file
        for path in paths:
            drawn.savefig(path, dpi=160)
        plt.close(drawn)


def _draw_legend(axes: Any, *, is_beside: bool) -> None:
    """Beside the chart, or below it where others are beside: it hides no curve."""
    lines, labels = axes.get_legend_handles_labels()
    # Below in points, as the axis' numbers and label are, which take the more of a chart the smaller it is.
    below = mpl.transforms.offset_copy(axes.transAxes, axes.figure, y=-_UNDER_AXIS_POINTS, units="points")
    where: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
    if is_beside:
        where = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend(
        lines, [shortened(label.removeprefix(_SHOWN), _LEGEND_CHARS) for label in labels], frameon=False, fontsize=6,
        handlelength=4, **where,
    )  # fmt: skip


# Before a label, that of a model called _hidden too: Matplotlib leaves out those that begin with an underscore.
_SHOWN = " "


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
    bars = [series for series in chart.series if series.bars]
    for i, series in enumerate(bars):
        width = _BARS / len(bars)
        aside = series.x + width * (i - (len(bars) - 1) / 2)
        axes.bar(aside, series.y, width, color=COLOURS[series.colour % len(COLOURS)], label=_SHOWN + series.label)
    for series in chart.series:
        if not series.bars:
            _draw_series(axes, series)
    if chart.zero:
        axes.axhline(0, color="#999999", lw=0.6, zorder=0)
    for i, stretch in enumerate(chart.intervened):
        above = axes.get_xaxis_transform()
        axes.axvspan(stretch.start, stretch.end, color=_INTERVENED, alpha=0.1, lw=0, zorder=0)
        axes.text(stretch.start, 0.02 + 0.07 * i, stretch.what, transform=above, fontsize=6, color=_INTERVENED)
    for band in chart.bands if chart.x.is_tokens else ():
        _draw_band(axes, band, is_heat=chart.heat is not None)
    for axis, which in ((chart.x, "x"), (chart.y, "y")):
        getattr(axes, f"set_{which}label")(axis.label)
        if axis.is_log:
            getattr(axes, f"set_{which}scale")("log")
        if axis.is_count:
            getattr(axes, f"{which}axis").set_major_locator(mpl.ticker.MultipleLocator())
        if axis.range is not None:
            getattr(axes, f"set_{which}lim")(axis.range)
        if axis.names:
            getattr(axes, f"set_{which}ticks")(range(len(axis.names)), axis.names)
        else:
            _number(getattr(axes, f"{which}axis"), axis)


def _number(drawn: Any, axis: Axis) -> None:
    """Ticks also where a logarithmic axis spans less than a decade, and numbers of one form."""
    low, high = sorted(drawn.get_view_interval())
    if axis.is_log:
        decades = np.log10(high / low)
        if decades < 0.7:
            drawn.set_major_locator(mpl.ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        else:
            drawn.set_major_locator(mpl.ticker.LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        drawn.set_minor_formatter(mpl.ticker.NullFormatter())
    if axis.is_tokens or (axis.is_log and high >= 1e4):
        thousands = 0 if axis.is_log else int(np.log10(max(high, 1.0)) // 3)
        unit = {0: (1.0, ""), 1: (1e3, "k"), 2: (1e6, "M"), 3: (1e9, "B")}.get(thousands, (1e12, "T"))
        each = mpl.ticker.FuncFormatter(lambda x, _place: f"{x / unit[0]:.4g}{unit[1] if x else ''}")
        drawn.set_major_formatter(mpl.ticker.EngFormatter(sep="") if axis.is_log else each)
    elif axis.is_log:
        drawn.set_major_formatter("{x:g}")


def _draw_heat(axes: Any, chart: Chart) -> None:
    heat = chart.heat
    assert heat is not None
    limits: dict[str, Any] = {"cmap": "cividis"}
    if heat.diverging:
        most = float(np.nanmax(np.abs(heat.z))) or 1.0
        colours = mpl.colors.LinearSegmentedColormap.from_list("diverging", _DIVERGING)
        limits = {"cmap": colours, "vmin": -most, "vmax": most}
    if heat.range is not None:
        limits |= {"vmin": heat.range[0], "vmax": heat.range[1]}
    mesh = axes.pcolormesh(heat.x, heat.y, heat.z, shading="nearest", rasterized=True, **limits)
    axes.figure.colorbar(mesh, ax=axes, label=heat.label, pad=0.02)


def _draw_series(axes: Any, series: Series) -> None:
    colour = _ROLES[series.role] if series.role else COLOURS[series.colour % len(COLOURS)]
    if series.dots:
        axes.plot(series.x, series.y, "o", color=colour, ms=13 if series.node else 4 * series.width / 1.5, zorder=3)
    else:
        model = series.model or 0
        axes.plot(
            series.x,
            series.y,
            linestyle="--" if series.dashed else _DASHES[model % len(_DASHES)],
            marker=_MARKS[model // len(_DASHES) % len(_MARKS)],
            markevery=max(1, len(series.x) // _N_MARKS),
            ms=3,
            color=colour,
            lw=0.7 * series.width,
            label=_SHOWN + series.label if series.in_legend else None,
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
    if is_heat:
        for edge in (band.start,) if band.is_open else (band.start, band.end):
            axes.axvline(edge, color=_BAND, lw=1)
    else:
        axes.axvspan(band.start, band.end, color=_BAND, alpha=0.2, lw=0, zorder=0)
    for interval in (band.start_interval,) if band.is_open else (band.start_interval, band.end_interval):
        above = axes.get_xaxis_transform()
        axes.plot(interval, (1.015, 1.015), color=_BAND, lw=1.5, transform=above, clip_on=False)
