"""Model Analysis Table, row "Loss over training"."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun, millions


def _chart(run: ReportedRun) -> Chart:
    tokens, training = run.training_loss
    series = [Series(label="held-out tokens", x=run.tokens, y=run.data["loss_curve"].values)]
    if len(tokens):
        series.insert(0, Series(label="training batches", x=tokens, y=training.mean(axis=1), colour=5, width=1))
    return Chart(x=TOKENS, y=Axis(label="loss (nats)"), series=series, bands=run.bands, legend=True)


def _ours(run: ReportedRun) -> str:
    final = f"{float(run.last('loss_curve')):.2f} nats at the end"
    if not run.has("bump_height") or not np.isfinite(height := float(run.data["bump_height"])):
        return final
    return f"bump of {height:.3f} nats at {millions(float(run.data['bump_tokens']))} tokens; {final}"


FIGURE = RunFigure(
    name="loss",
    title="Loss over training",
    shows="Mean loss of fixed held-out tokens, one at a time from random positions, at every snapshot; behind it "
    "that of the training batches (light).",
    look_for="A bump inside the orange band: the only stretch in which the curve is not convex; a model without "
    "induction heads has none.",
    paper="the phase change is the only place where the curve is not convex",
    needs=("loss_curve",),
    chart=_chart,
    ours=_ours,
)
