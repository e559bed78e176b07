"""Model Analysis Table, row "Ablation to before-and-after vector"."""

from icl_jax.report.figures.figure import ablation_figure

FIGURE = ablation_figure(
    "pattern_preserving_along_change",
    "share of the change (−1 undoes it)",
    sign=-1,
    name="ablation_along_change",
    title="Ablation along the before-and-after vector",
    shows="What taking one head away (patterns kept) adds to the token losses along the vector from before to after "
    "the phase change, as a share of its length.",
    look_for="Negative values: without the head the change is undone; −1 would undo all of it.",
    paper="negative for induction heads; its axis is a length, not a share, so the numbers do not compare",
)
