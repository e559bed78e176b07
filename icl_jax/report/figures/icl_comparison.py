"""The ICL score of all models in one chart, seeds as means and intervals."""

from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.figures.figure import TOKENS, ComparisonFigure, change_stretch
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.seeds import MOST, group_by_config


def _chart(runs: list[ReportedRun]) -> Chart | Gap:
    if all(run.is_single for run in runs):
        return Gap("one snapshot has no curve")
    series = []
    for colour, group in enumerate(group_by_config(runs)[:MOST]):
        x, mean, low, high = group.mean_curve("icl_windowed")
        series.append(Series(label=group.name, x=x, y=mean, low=low, high=high, colour=colour, model=colour, width=2))
        for run in group.runs:
            y = run.data["icl_windowed"].values
            if 1 < len(group.runs) <= MOST:
                series.append(Series(label=run.name, x=run.tokens, y=y, colour=colour, width=0.7, in_legend=False))
            if len(group.runs) <= MOST:
                series += change_stretch(run, y, colour)
    return Chart(x=TOKENS, y=Axis(label="ICL score (nats)"), series=series, zero=True, legend=True)


FIGURE = ComparisonFigure(
    name="icl_comparison",
    title="In-context learning, all models",
    shows="The windowed ICL score against training tokens: late minus early loss on held-out rows. Runs that differ in "
    "their seeds alone are one curve, the mean, with its 95 % interval; the "
    "thick stretches are phase changes.",
    look_for="Models that can build induction heads fall abruptly; models that cannot stay flat.",
    paper="magnitude below 0.15 nats before the change, about −0.40 nats after it",
    needs=("icl_windowed",),
    chart=_chart,
)
