"""Model Analysis Table, row "Principal component analysis of token losses"."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import RunFigure
from icl_jax.report.reported_run import ReportedRun


def _chart(run: ReportedRun) -> Chart:
    score, explained = run.data["pca_score"].values, run.data["pca_explained"].values
    series = [Series(label="snapshots", x=score[:, 0], y=score[:, 1], width=1.2)]
    series.append(Series(label="start of training", x=score[:1, 0], y=score[:1, 1], dots=True, text="start"))
    for band in run.bands:
        x, y = run.stretch(band, score[:, 0])[1], run.stretch(band, score[:, 1])[1]
        series.append(Series(label="inside the band", x=x, y=y, colour=4, width=4))
    x_axis, y_axis = (
        Axis(label=f"component {i + 1} ({100 * share:.0f} % of variance), nats", column=f"component {i + 1} (nats)")
        for i, share in enumerate(explained)
    )
    return Chart(x=x_axis, y=y_axis, series=series)


def _ours(run: ReportedRun) -> str:
    if not run.bands or not run.has("pca_turn"):
        return ""
    turn, tokens = np.nan_to_num(run.data["pca_turn"].values), run.data["pca_turn_tokens"].values
    inside = np.any([(tokens >= band.start) & (tokens <= band.end) for band in run.bands], axis=0)
    return f"turns by {np.degrees(turn[inside].sum()):.0f}° in all inside the band" if inside.any() else ""


FIGURE = RunFigure(
    name="pca",
    title="Token losses in two principal components",
    shows="The path of the vector of token losses through training, in the plane that holds most of its variance; the "
    "thick stretch lies inside the band.",
    look_for="A turn at the thick stretch: the model learns something of another kind there than before and after.",
    needs=("pca_score", "pca_explained"),
    chart=_chart,
    ours=_ours,
)
