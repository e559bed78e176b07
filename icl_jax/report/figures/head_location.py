"""Appendix "Where induction heads form"."""

import numpy as np

from icl_jax.report.chart import Axis, Chart
from icl_jax.report.figures.figure import SHARE, RunFigure, head_dots
from icl_jax.report.reported_run import ReportedRun


def _chart(run: ReportedRun) -> Chart:
    model = run.config.model
    # Heads of a layer stand side by side, so that none hides another.
    aside = np.linspace(-0.25, 0.25, model.n_heads) if model.n_heads > 1 else np.zeros(1)
    x = np.arange(model.n_layers)[:, None] + aside[None]
    axis = Axis(label="layer (heads side by side)", is_count=True, range=(-0.6, model.n_layers - 0.4))
    y_axis = Axis(label="prefix matching", range=SHARE)
    return head_dots(run, x, run.last("prefix_matching"), axis, y_axis, labelled=True)


def _ours(run: ReportedRun) -> str:
    found = run.heads_of("induction")
    if not found:
        return "no induction head"
    return f"induction heads in layer {', '.join(str(layer) for layer in sorted({layer for layer, _ in found}))}"


FIGURE = RunFigure(
    name="head_location",
    title="Where induction heads form",
    shows="Prefix matching of every head at the end of training, by layer.",
    look_for="Which layer holds the vermilion heads: the first cannot, unless its keys are smeared.",
    paper="small attention-only models: the last layer; with MLPs, five and six layers: the last but one",
    needs=("prefix_matching",),
    chart=_chart,
    ours=_ours,
)
