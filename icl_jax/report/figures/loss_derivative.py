"""Model Analysis Table, row "Derivative of loss with respect to context index"."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Heat, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun, signed


def _chart(run: ReportedRun) -> Chart:
    label = "d loss / d ln(token index) (nats)"
    index = Axis(label="token index", is_log=True)
    if run.is_single:
        curve = Series(label="derivative", x=run.data["bin_index"].values, y=run.last("loss_derivative"))
        return Chart(x=index, y=Axis(label=label), series=[curve], zero=True)
    heat = Heat(
        x=run.tokens, y=run.data["bin_index"].values, z=run.data["loss_derivative"].values.T,
        label=label, diverging=True,
    )  # fmt: skip
    return Chart(x=TOKENS, y=index, heat=heat, bands=run.bands)


def _ours(run: ReportedRun) -> str:
    if run.window is None:
        return ""
    late = run.data["bin_index"].values >= run.data.attrs["icl_early"]
    before, after = (signed(float(np.nanmean(run.at("loss_derivative", step)[late]))) for step in run.window)
    shown = after if run.is_single else f"{before} → {after}"
    return f"mean from token {run.data.attrs['icl_early']} on: {shown} nats"


FIGURE = RunFigure(
    name="loss_derivative",
    title="Derivative of the loss by log token index",
    shows="How much a further factor of e of context lowers the loss, in bins that are even in the log index.",
    look_for="Blue far up the axis after the band: context goes on helping; before it the upper part is blank.",
    paper="about 0 beyond token 50 before the change; negative to the end of the context after it",
    needs=("loss_derivative", "bin_index"),
    chart=_chart,
    ours=_ours,
)
