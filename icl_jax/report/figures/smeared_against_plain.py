"""Argument 2: each smeared model beside the one that differs from it in nothing else."""

from dataclasses import replace

from icl_jax.config import experiment
from icl_jax.report.chart import Axis, Chart, Gap, Series
from icl_jax.report.figures.figure import TOKENS, ComparisonFigure
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.seeds import Group, group_by_config

NEEDS_PAIR = "needs a run with smeared keys beside one that differs from it in nothing else"


def smeared_pairs(runs: list[ReportedRun]) -> list[tuple[Group, Group]]:
    """(smeared, plain) groups whose configs differ in model.smeared_keys alone."""
    groups = group_by_config(runs)
    pairs = []
    for smeared in groups:
        config = experiment(smeared.runs[0].config)
        if config.model.smeared_keys:
            control = replace(config, model=replace(config.model, smeared_keys=False))
            pairs += [(smeared, plain) for plain in groups if experiment(plain.runs[0].config) == control]
    return pairs


def _chart(runs: list[ReportedRun]) -> Chart | Gap:
    pairs = smeared_pairs(runs)
    if not pairs:
        return Gap(NEEDS_PAIR)
    series = []
    for colour, pair in enumerate(pairs):
        for group, is_plain in zip(pair, (False, True), strict=True):
            x, mean, low, high = group.mean_curve("icl_windowed")
            label = f"{group.name}: {group.runs[0].size}"
            series.append(Series(label=label, x=x, y=mean, low=low, high=high, colour=colour, width=2, dashed=is_plain))
    return Chart(x=TOKENS, y=Axis(label="ICL score (nats)"), series=series, zero=True, legend=True)


FIGURE = ComparisonFigure(
    name="smeared_against_plain",
    title="Smeared keys against plain",
    shows="ICL score of each model whose keys are mixed with their predecessors (solid) and of the same model without "
    "(dashed).",
    look_for="One smeared layer goes through a change that one plain layer cannot; with two layers the change comes "
    "earlier.",
    paper="one smeared layer: the phase change occurs; two: earlier than in the control",
    needs=("icl_windowed",),
    chart=_chart,
)
