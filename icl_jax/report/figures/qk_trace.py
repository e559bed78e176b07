"""Model Analysis Table, row "Trace of QK eigenvalues"."""

from icl_jax.report.figures.figure import head_figure

FIGURE = head_figure(
    "qk_trace",
    "trace of the previous-token QK term",
    name="qk_trace",
    title="QK-eigenvalue trace by head",
    shows="Read from the weights alone: how strongly each head of a later layer prefers keys whose previous token, as "
    "earlier heads wrote it, is its own token.",
    look_for="The heads with high prefix matching should leave the others upwards at the same time.",
    paper="strongly positive for induction heads, near 0 for random weights",
)
