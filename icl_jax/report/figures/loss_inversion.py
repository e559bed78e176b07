"""Unexplained curiosities: the derivative of the loss by log tokens, model beside model."""

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import ComparisonFigure
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.seeds import choose


def _chart(runs: list[ReportedRun]) -> Chart:
    series = [
        Series(
            label=run.name,
            x=run.data["log_tokens_grid"].values,
            y=run.data["loss_by_log_tokens"].values,
            colour=i,
            model=i,
        )
        for i, run in enumerate(choose(runs))
    ]
    axis = Axis(label="training tokens", is_log=True)
    return Chart(x=axis, y=Axis(label="d loss / d ln(tokens) (nats)"), series=series, zero=True, legend=True)


FIGURE = ComparisonFigure(
    name="loss_inversion",
    title="How fast each model learns",
    shows="Derivative of the held-out loss by the logarithm of the training tokens; low is fast.",
    look_for="In the paper the order of the sizes is reversed at the phase change.",
    paper="before the change small models' loss falls more slowly than large ones', after it the other way round",
    needs=("loss_by_log_tokens", "log_tokens_grid"),
    chart=_chart,
)
