"""Sets of heads ablated at once: how much depends on how many, and on which."""

import numpy as np

from icl_jax.measures.set_ablation import SET_KINDS, SHARES
from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import RunFigure
from icl_jax.report.reported_run import ReportedRun, signed

_NAMES = dict(
    zip(SET_KINDS, ("induction heads", "previous-token heads", "others of their layers", "any others"), strict=True)
)
_COLOURS = (1, 0, 6, 3)


def _chart(run: ReportedRun) -> Chart:
    effect, error = run.last("size_icl_effect"), 1.645 * run.last("size_icl_effect_sem")
    x = np.round(100 * np.array(SHARES))
    series = [
        Series(
            label=name, x=x, y=effect[:, i], low=effect[:, i] - error[:, i], high=effect[:, i] + error[:, i],
            colour=colour,
        )
        for i, (name, colour) in enumerate(zip(_NAMES.values(), _COLOURS, strict=True))
    ]  # fmt: skip
    return Chart(
        x=Axis(label="heads ablated (% of all, one at least)"), y=Axis(label="change of the ICL score (nats)"),
        series=series, legend=True, zero=True,
    )  # fmt: skip


def _ours(run: ReportedRun) -> str:
    effect, n = run.last("size_icl_effect")[-1], int(run.last("set_size")[-1])
    parts = [f"{name} {signed(float(value))}" for name, value in zip(_NAMES.values(), effect, strict=True)]
    return f"without {n} of each: {', '.join(parts)} nats"


FIGURE = RunFigure(
    name="set_sizes",
    title="Sets of heads taken away",
    shows="Change of the ICL score at the end of training when the heads that score highest are taken away at once, "
    "and as many of other kinds, with its 90 % interval.",
    look_for="Induction heads, and the previous-token heads that feed them, above as many others.",
    needs=("size_icl_effect", "set_size"),
    on_request=True,
    chart=_chart,
    ours=_ours,
)
