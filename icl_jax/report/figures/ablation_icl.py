"""Model Analysis Table, row "Ablation attribution to in-context learning score"."""

from icl_jax.report.figures.figure import ablation_figure

FIGURE = ablation_figure(
    "pattern_preserving_icl_effect",
    "change of the ICL score (nats)",
    sign=1,
    unit=" nats",
    name="ablation_icl",
    title="Ablation and the in-context learning score",
    shows="Change of the ICL score when one head is taken away with all patterns kept.",
    look_for="Positive values for induction heads, which make in-context learning; near zero, or below, for the rest.",
    paper="in attention-only models almost all of the score comes from induction heads; ablating most others raises "
    "its magnitude",
)
