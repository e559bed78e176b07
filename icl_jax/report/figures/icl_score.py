"""Model Analysis Table, row "In-context learning score"."""

import numpy as np

from icl_jax.maths.icl_score import SAYS_NOTHING
from icl_jax.report.chart import Axis, Chart, Series, Value
from icl_jax.report.figures.figure import TOKENS, RunFigure, before_after
from icl_jax.report.reported_run import ReportedRun, share, signed


def _error(run: ReportedRun) -> float:
    """Standard error of the score at single tokens, the largest over training; 0 for a single row, which has none."""
    return float(np.nanmax(np.append(run.data["icl_score_sem"].values, 0.0)))


def _over_windows(run: ReportedRun) -> str:
    (early_a, early_b), (late_a, late_b) = (run.data.attrs[f"icl_{end}_window"] for end in ("early", "late"))
    return f"tokens {late_a} to {late_b} minus {early_a} to {early_b}"


def _at_single(run: ReportedRun) -> str:
    return f"token {run.data.attrs['icl_late']} minus {run.data.attrs['icl_early']}"


def _score(run: ReportedRun, name: str, error: str) -> str:
    """At the last snapshot; a single row has no standard error."""
    sem = float(run.last(error))
    return f"{signed(float(run.last(name)))}{f' ± {share(sem)}' if np.isfinite(sem) else ''} nats"


def _chart(run: ReportedRun) -> Chart | Value:
    data, x = run.data, run.tokens
    if run.is_single:
        return Value(f"{_over_windows(run)}: {_score(run, 'icl_windowed', 'icl_sem')}; "
                     f"{_at_single(run)}: {_score(run, 'icl_score', 'icl_score_sem')}")  # fmt: skip
    windowed, sem = data["icl_windowed"].values, data["icl_sem"].values
    series = [
        Series(
            label=_over_windows(run), x=x, y=windowed, low=windowed - sem, high=windowed + sem,
        ),
    ]  # fmt: skip
    if _error(run) <= SAYS_NOTHING:
        single, sem = data["icl_score"].values, data["icl_score_sem"].values
        series.append(
            Series(label=_at_single(run), x=x, y=single, low=single - sem, high=single + sem, colour=5, width=1)
        )
    if run.has("floor_icl"):
        floor = np.full(2, float(data["floor_icl"]))
        series.append(Series(label="the corpus itself", x=x[[0, -1]], y=floor, colour=6, width=1, dashed=True))
    return Chart(x=TOKENS, y=Axis(label="ICL score (nats)"), series=series, bands=run.bands, zero=True, legend=True)


def _ours(run: ReportedRun) -> str:
    if run.is_single:
        return ""
    error = _error(run)
    left_out = f"; at single tokens not shown, standard error {error:.2f} nats" if error > SAYS_NOTHING else ""
    return f"{before_after(run, 'icl_windowed')} nats; {run.phase_words}{left_out}"


FIGURE = RunFigure(
    name="icl_score",
    title="In-context learning score",
    shows="Loss late in the context minus loss early in it, over windows (dark) and at the paper's two single tokens "
    "(light), each with its standard error; the latter only where that is 0.125 nats or less. Dashed: the score of the "
    "corpus itself, where it is known.",
    look_for="A steep fall inside a band: in-context learning forms in an abrupt change. Without a band the curve is "
    "one of smooth learning.",
    paper="magnitude below 0.15 nats before; about −0.40 nats after, whatever the size; more than 75 % formed in the "
    "window",
    needs=("icl_windowed", "icl_sem", "icl_score", "icl_score_sem"),
    chart=_chart,
    ours=_ours,
)
