"""Model Analysis Table, row "Prefix matching score"."""

from icl_jax.report.figures.figure import SHARE, head_figure

FIGURE = head_figure(
    "prefix_matching",
    "prefix matching",
    range=SHARE,
    name="prefix_matching",
    title="Prefix matching by head",
    shows="Attention of each head, on random tokens said four times, to what followed earlier occurrences of the "
    "present token.",
    look_for="Heads that rise from near zero to near one inside the band: induction heads, drawn in vermilion.",
)
