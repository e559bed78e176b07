"""Appendix: the before-and-after attribution under full ablation."""

from icl_jax.report.figures.figure import RunFigure, head_curves, strongest_ablation

FIGURE = RunFigure(
    name="full_ablation",
    title="Full ablation along the before-and-after vector",
    shows="The same with everything downstream computed anew: a head also counts for what later heads attend to "
    "because of it.",
    look_for="Previous-token heads, which do nothing above, undo the change here: they act through the keys of the "
    "induction heads.",
    needs=("full_along_change",),
    chart=lambda run: head_curves(run, "full_along_change", "share of the change (−1 undoes it)"),
    ours=lambda run: strongest_ablation(run, "full_along_change", -1, ""),
)
