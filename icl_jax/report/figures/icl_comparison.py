"""The ICL score of all models in one chart, seeds as means and intervals."""

from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.figures.figure import TOKENS, ComparisonFigure
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.seeds import group_by_config


def _chart(runs: list[ReportedRun]) -> Chart | Gap:
    with_score = [run for run in runs if run.has("icl_windowed")]
    if not with_score:
        return runs[0].gap("icl_windowed") or Gap("no run has an ICL score")
    series = []
    for colour, group in enumerate(group_by_config(with_score)):
        x, mean, low, high = group.mean_curve("icl_windowed")
        series.append(Series(label=group.name, x=x, y=mean, low=low, high=high, colour=colour, width=2))
        for run in group.runs:
            y = run.data["icl_windowed"].values
            if len(group.runs) > 1:
                series.append(Series(label=run.name, x=run.tokens, y=y, colour=colour, width=0.7, in_legend=False))
            if run.band is not None and run.band.forms:
                inside = (run.tokens >= run.band.start) & (run.tokens <= run.band.end)
                label = f"{run.name}: phase change"
                series.append(
                    Series(label=label, x=run.tokens[inside], y=y[inside], colour=colour, width=5, in_legend=False)
                )
    return Chart(x=TOKENS, y=Axis(label="ICL score (nats)"), series=series, zero=True, legend=True)


FIGURE = ComparisonFigure(
    name="icl_comparison",
    title="In-context learning, all models",
    shows="The windowed ICL score against training tokens: late minus early loss on held-out rows. Runs that differ in "
    "their seeds alone are one curve, the mean, with its 95 % interval; the "
    "thick stretches are phase changes.",
    look_for="Models that can build induction heads fall abruptly; models that cannot stay flat.",
    paper="magnitude below 0.15 nats before the change, about −0.40 nats after it",
    chart=_chart,
)
