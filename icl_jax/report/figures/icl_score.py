"""Model Analysis Table, row "In-context learning score"."""

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure, before_after
from icl_jax.report.reported_run import ReportedRun


def _chart(run: ReportedRun) -> Chart:
    data, x = run.data, run.tokens
    windowed, sem = data["icl_windowed"].values, data["icl_sem"].values
    (early_a, early_b), (late_a, late_b) = data.attrs["icl_early_window"], data.attrs["icl_late_window"]
    series = [
        Series(
            label=f"tokens {late_a} to {late_b} minus {early_a} to {early_b}", x=x, y=windowed,
            low=windowed - sem, high=windowed + sem,
        ),
        Series(
            label=f"token {data.attrs['icl_late']} minus {data.attrs['icl_early']}", x=x,
            y=data["icl_score"].values, colour=5, width=1,
        ),
    ]  # fmt: skip
    return Chart(x=TOKENS, y=Axis(label="ICL score (nats)"), series=series, bands=run.bands, zero=True, legend=True)


def _ours(run: ReportedRun) -> str:
    return f"{before_after(run, 'icl_windowed')} nats; {run.phase_words}"


FIGURE = RunFigure(
    name="icl_score",
    title="In-context learning score",
    shows="Loss late in the context minus loss early in it, over windows (dark, with its standard error) and at the "
    "paper's two single tokens (light).",
    look_for="A steep fall inside a band: in-context learning forms in an abrupt change. Without a band the curve is "
    "one of smooth learning.",
    paper="magnitude below 0.15 nats before; about −0.40 nats after, whatever the size; more than 75 % formed in the "
    "window",
    needs=("icl_windowed", "icl_sem", "icl_score"),
    chart=_chart,
    ours=_ours,
)
