"""The corpus's behaviours over training: probability of the right token, one curve a label."""

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import SHARE, TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun


def _chart(run: ReportedRun) -> Chart:
    series = [
        Series(label=str(label), x=run.tokens, y=run.data["label_prob"].values[:, i], colour=i)
        for i, label in enumerate(run.data["label"].values)
    ]
    return Chart(
        x=TOKENS, y=Axis(label="probability of the right token", range=SHARE), series=series, bands=run.bands,
        legend=True,
    )  # fmt: skip


FIGURE = RunFigure(
    name="behaviours_over_training",
    title="Behaviours over training",
    shows="Mean probability of the right token, over the held-out tokens that the corpus marks as showing each "
    "behaviour.",
    look_for="Behaviours that need context rise inside the band; those that need none rise before it.",
    needs=("label_prob",),
    chart=_chart,
)
