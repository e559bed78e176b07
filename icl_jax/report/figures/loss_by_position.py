"""Model Analysis Table, row "Loss over training, broken down by context index"."""

from icl_jax.report.chart import Axis, Chart, Heat, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure, log_positions
from icl_jax.report.reported_run import ReportedRun


def _chart(run: ReportedRun) -> Chart:
    loss = run.data["loss_by_position"].values
    positions = log_positions(loss.shape[1])
    if run.is_single:
        curve = Series(label="loss", x=positions + 1.0, y=loss[0, positions])
        return Chart(x=Axis(label="token index", is_log=True), y=Axis(label="loss (nats)"), series=[curve])
    heat = Heat(x=run.tokens, y=positions + 1, z=loss[:, positions].T, label="loss (nats)")
    return Chart(x=TOKENS, y=Axis(label="token index", is_log=True), heat=heat, bands=run.bands)


def _ours(run: ReportedRun) -> str:
    early, late = run.data.attrs["icl_early"], run.data.attrs["icl_late"]
    loss = run.last("loss_by_position")
    return f"at the end {loss[early - 1]:.2f} nats at token {early}, {loss[late - 1]:.2f} at token {late}"


FIGURE = RunFigure(
    name="loss_by_position",
    title="Loss by token index over training",
    shows="Mean held-out loss of each token index (log scale, at the indexes drawn) against training tokens.",
    look_for="Before the band, rows above the first few tokens have one colour; after it, later tokens are predicted "
    "better than earlier ones.",
    needs=("loss_by_position",),
    chart=_chart,
    ours=_ours,
)
