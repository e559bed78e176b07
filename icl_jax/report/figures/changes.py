"""Each curve in which changes are looked for, beside what was found: its points, the fit, and the windows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from icl_jax.maths.change_point import explained
from icl_jax.maths.finding import Finding
from icl_jax.measures.curves import SCORES, Curve, best_head_of, head_curves, icl_curve, loss_curve
from icl_jax.measures.phase_change import finding_of
from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun, bands_of

_NUMBERS = ("no change", "one change", "two changes", "three changes", "four changes")


class _Looked(NamedTuple):
    """A curve, and what the detector says of it."""

    label: str
    direction: int
    curve: Curve
    finding: Finding


def _looked(run: ReportedRun) -> Iterator[_Looked]:
    """The ICL score, each label's probability, each score of its best head at the end, the loss."""
    data = run.data
    yield _Looked("ICL score (nats)", -1, icl_curve(run.recorded, data), finding_of(data))
    if run.has("label_change_p", "label_prob"):
        for i, label in enumerate(data["label"].values):
            curve = Curve(run.tokens, data["label_prob"].values[:, i].astype(np.float64))
            if np.isfinite(curve.values).any():
                yield _Looked(f"p({label})", 1, curve, finding_of(data, "label_change", label=i))
    if run.has("head_change_p", *SCORES):
        for i, (score, words) in enumerate(SCORES.items()):
            tokens, values = head_curves(run.recorded, data, score)
            layer, head = best_head_of(values[-1])
            finding = finding_of(data, "head_change", score=i, layer=layer, head=head)
            yield _Looked(f"{words}, head {layer}.{head}", 1, Curve(tokens, values[:, layer, head]), finding)
    if run.has("loss_change_p", "loss_by_position"):
        yield _Looked("held-out loss (nats)", -1, loss_curve(run.recorded, data), finding_of(data, "loss_change"))


def _chart(run: ReportedRun, looked: _Looked) -> Chart:
    tokens, values = looked.curve
    series = [Series(label="measured", x=tokens, y=values, dots=True, colour=0, width=0.75)]
    schedule = None if run.recorded is None else run.recorded.schedule
    fit = explained(tokens, values, looked.finding.changes, schedule=schedule, direction=looked.direction)
    if fit is not None:
        series.append(Series(label="smooth curve alone", x=fit.tokens, y=fit.smooth, colour=6, width=1, dashed=True))
        if looked.finding.changes:
            series.append(Series(label="with changes", x=fit.tokens, y=fit.fitted, colour=1))
    status = looked.finding.status
    count = "fewer than eight points" if status == "too few points" else _NUMBERS[len(looked.finding.changes)]
    return Chart(
        title=f"{count}{', still going on' if status == 'still going on' else ''}", x=TOKENS,
        y=Axis(label=looked.label), series=series, bands=bands_of(looked.finding, float(tokens[-1])),
    )  # fmt: skip


FIGURE = RunFigure(
    name="changes",
    title="Curves and their changes",
    shows="Points: what was measured, at the probes or at the snapshots, whichever are more; dashed: the best smooth "
    "learning curve; line: the best with the changes that were found. Bands: from 10 to 90 % of a change, the bars "
    "above them the 90 % intervals of both ends. Scores of heads: of the head that is best at the end.",
    look_for="A change is there where the dashed curve cannot follow the points and the line does.",
    needs=("change_p", "icl_windowed"),
    chart=lambda run: Gap("one snapshot has no curve") if run.is_single else [_chart(run, at) for at in _looked(run)],
)
