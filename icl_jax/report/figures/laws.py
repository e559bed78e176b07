"""When induction heads form as a function of what was varied, over runs with members."""

from dataclasses import dataclass

import numpy as np

from icl_jax.report.axes import Varied, axes_of
from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.figures.figure import Captions, Panel
from icl_jax.report.figures.over_members import ReportedMembers

_SHIFT = 0.012
"""Dots of one value lie beside each other, by this part of the axis."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LawsFigure(Captions):
    """A chart for each field that runs with members vary."""

    def panels(self, runs: list[ReportedMembers]) -> list[Panel]:
        axes = axes_of(runs)
        if not axes:
            return [Panel(None, Gap("no three values of one field, all else equal"))]
        return [Panel(None, _chart(axis)) for axis in axes]


def _chart(axis: Varied) -> Chart:
    x = _beside(axis)
    series = [
        Series(label=label, x=x[which], y=axis.tokens[which], dots=True, colour=colour)
        for label, which, colour in (
            ("an induction head has formed", axis.has_formed, 0), ("none by then", ~axis.has_formed, 1),
        )
        if which.any()
    ]  # fmt: skip
    title, fitted = "by optimiser", (*axis.where_any_formed, axis)[0]
    if (law := fitted.law) is not None:
        grid = np.geomspace(fitted.values.min(), fitted.values.max(), 50)
        series.append(Series(label="power law", x=grid, y=law.scale * grid**law.exponent, colour=2))
        title = f"{law.exponent:+.2f} ({law.low:+.2f} to {law.high:+.2f}){fitted.note}"
    across = Axis(label=axis.label, is_log=not axis.names, names=axis.names, column=axis.field)
    y = Axis(label="training tokens", is_log=True, column="tokens")
    return Chart(title=title, x=across, y=y, series=series, legend=True)


def _beside(axis: Varied) -> np.ndarray:
    """The values; those of a scale a little apart within each value, so that every dot is seen."""
    if axis.names:
        return axis.values
    moved, reach = axis.values.copy(), np.log(axis.values.max() / axis.values.min())
    for value in np.unique(axis.values):
        at = np.flatnonzero(axis.values == value)
        moved[at] *= np.exp(_SHIFT * reach * (np.arange(len(at)) - (len(at) - 1) / 2))
    return moved


LAWS = LawsFigure(
    name="laws",
    title="What sets the time at which heads form",
    shows="Training tokens at which an induction head of each seed has formed, by one field that runs differ in, the "
    "rest alike; line: the power law and its exponent, fitted with seeds that had none by their run's end (censored "
    "there), without values at which none has one.",
    look_for="A straight line; where its test refutes one, the exponent says little.",
    needs=("prefix_matching",),
)
