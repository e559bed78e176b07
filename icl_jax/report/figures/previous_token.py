"""Appendix "Head activation evaluators": previous-token score."""

from icl_jax.report.figures.figure import SHARE, head_figure

FIGURE = head_figure(
    "previous_token",
    "previous-token attention",
    range=SHARE,
    name="previous_token",
    title="Previous-token attention by head",
    shows="Mean attention of each head to the token just before, on held-out rows.",
    look_for="In models with two layers, a head of an early layer that rises with or before the induction heads: they "
    "read what it writes.",
)
