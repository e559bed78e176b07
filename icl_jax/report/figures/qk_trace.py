"""Model Analysis Table, row "Trace of QK eigenvalues"."""

from icl_jax.report.figures.figure import RunFigure, best_head, head_curves

FIGURE = RunFigure(
    name="qk_trace",
    title="QK-eigenvalue trace by head",
    shows="Read from the weights alone: how strongly each head of a later layer prefers keys whose previous token, as "
    "earlier heads wrote it, is its own token.",
    look_for="The heads with high prefix matching should leave the others upwards at the same time.",
    paper="strongly positive for induction heads, near 0 for random weights",
    needs=("qk_trace",),
    chart=lambda run: head_curves(run, "qk_trace", "trace of the previous-token QK term"),
    ours=lambda run: f"highest at the end {best_head(run, 'qk_trace')}",
)
