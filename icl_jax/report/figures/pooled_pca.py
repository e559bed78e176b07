"""The paths of several models through token losses in one plane: components of all their snapshots together."""

from icl_jax.measures.pca import pca
from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.figures.figure import ComparisonFigure
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.seeds import choose

_NEEDS = "needs two models that were measured on the same tokens"


def _families(runs: list[ReportedRun]) -> list[list[ReportedRun]]:
    """Runs whose token losses are of the same tokens, two and more."""
    found: dict[bytes, list[ReportedRun]] = {}
    for run in choose(runs):
        if "token_id" in run.data:
            found.setdefault(run.data["token_id"].values.tobytes(), []).append(run)
    return [family for family in found.values() if len(family) > 1]


def _chart(runs: list[ReportedRun], number: dict[str, int]) -> Chart:
    found = pca([run.data["token_loss"].values for run in runs])
    series: list[Series] = []
    for run, score in zip(runs, found.scores, strict=True):
        colour = number[run.name]
        series.append(Series(label=run.name, x=score[:, 0], y=score[:, 1], colour=colour, model=colour, width=1.2))
        for band in run.bands:
            x, y = (run.stretch(band, score[:, i])[1] for i in range(2))
            label = f"{run.name}: phase change"
            series.append(Series(label=label, x=x, y=y, colour=colour, width=5, in_legend=False))
    x_axis, y_axis = (
        Axis(label=f"component {i + 1} ({100 * share:.0f} % of variance), nats", column=f"component {i + 1} (nats)")
        for i, share in enumerate(found.explained)
    )
    return Chart(title=runs[0].config.data.source, x=x_axis, y=y_axis, series=series, legend=True)


def _charts(runs: list[ReportedRun]) -> list[Chart] | Gap:
    number = {run.name: i for i, run in enumerate(runs)}
    families = _families(runs)
    return [_chart(family, number) for family in families] if families else Gap(_NEEDS)


FIGURE = ComparisonFigure(
    name="pooled_pca",
    title="Token losses of all models in two principal components",
    shows="The paths of the vectors of token losses through training, in the plane that holds most of the variance of "
    "all snapshots of all models on the same tokens; thick: phase changes.",
    look_for="Models start together; those with a phase change turn away there from those without one.",
    needs=("token_loss",),
    chart=_charts,
)
