"""Appendix: the before-and-after attribution under full ablation."""

from icl_jax.report.figures.figure import ablation_figure

FIGURE = ablation_figure(
    "full_along_change",
    "share of the change (−1 undoes it)",
    sign=-1,
    name="full_ablation",
    title="Full ablation along the before-and-after vector",
    shows="The same with everything downstream computed anew: a head also counts for what later heads attend to "
    "because of it.",
    look_for="Previous-token heads, which do nothing above, undo the change here: they act through the keys of the "
    "induction heads.",
)
