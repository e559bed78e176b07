"""Model Analysis Table, row "Prefix matching score"."""

from icl_jax.report.figures.figure import SHARE, RunFigure, best_head, head_curves

FIGURE = RunFigure(
    name="prefix_matching",
    title="Prefix matching by head",
    shows="Attention of each head, on random tokens said four times, to what followed earlier occurrences of the "
    "present token.",
    look_for="Heads that rise from near zero to near one inside the band: induction heads, drawn in vermilion.",
    needs=("prefix_matching",),
    chart=lambda run: head_curves(run, "prefix_matching", "prefix matching", range=SHARE),
    ours=lambda run: f"highest at the end {best_head(run, 'prefix_matching')}",
)
