"""The one list of all figures, in the order of the page."""

from icl_jax.report.figures import (
    ablation_along_change,
    ablation_icl,
    behaviours,
    changes,
    classes,
    composition,
    full_ablation,
    head_location,
    icl_comparison,
    icl_score,
    loss_by_position,
    loss_curve,
    loss_derivative,
    loss_inversion,
    markov,
    pca,
    phase_change,
    pooled_pca,
    prefix_against_copying,
    prefix_matching,
    previous_token,
    qk_trace,
    seen_bigrams,
    smear,
    smeared_against_plain,
    triggers,
)
from icl_jax.report.figures.figure import ComparisonFigure, Figure, RunFigure

COMPARISONS: tuple[ComparisonFigure, ...] = (
    phase_change.FIGURE,
    icl_comparison.FIGURE,
    smeared_against_plain.FIGURE,
    loss_inversion.FIGURE,
    pooled_pca.FIGURE,
)
MODEL_ANALYSIS: tuple[RunFigure, ...] = (
    icl_score.FIGURE,
    changes.FIGURE,
    loss_curve.FIGURE,
    loss_by_position.FIGURE,
    loss_derivative.FIGURE,
    prefix_matching.FIGURE,
    previous_token.FIGURE,
    qk_trace.FIGURE,
    ablation_along_change.FIGURE,
    ablation_icl.FIGURE,
    full_ablation.FIGURE,
    seen_bigrams.FIGURE,
    pca.FIGURE,
    smear.FIGURE,
    composition.FIGURE,
    head_location.FIGURE,
    prefix_against_copying.FIGURE,
)
BEHAVIOURS: tuple[RunFigure, ...] = (behaviours.FIGURE, markov.FIGURE, triggers.FIGURE, classes.FIGURE)
FIGURES: tuple[Figure, ...] = (*COMPARISONS, *MODEL_ANALYSIS, *BEHAVIOURS)
