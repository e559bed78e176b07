"""Model Analysis Table, row "Derivative of loss with respect to context index"."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Heat
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun, signed


def _chart(run: ReportedRun) -> Chart:
    heat = Heat(
        x=run.tokens, y=run.data["bin_index"].values, z=run.data["loss_derivative"].values.T,
        label="d loss / d ln(token index) (nats)", diverging=True,
    )  # fmt: skip
    return Chart(x=TOKENS, y=Axis(label="token index", is_log=True), heat=heat, bands=run.bands)


def _ours(run: ReportedRun) -> str:
    if run.window is None:
        return ""
    late = run.data["bin_index"].values >= run.data.attrs["icl_early"]
    before, after = (float(np.nanmean(run.at("loss_derivative", step)[late])) for step in run.window)
    return f"mean from token {run.data.attrs['icl_early']} on: {signed(before)} → {signed(after)} nats"


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
