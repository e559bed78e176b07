"""What a model can do, before the phase change and at the end of its run: the labels of the corpus, one row each.

At the end, not at the end of the change: a model without a change has then seen as much as one with it.
"""

from dataclasses import dataclass

import numpy as np

from icl_jax.measures.phase_change import finding_of
from icl_jax.report.changes import window_words
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.seeds import Group, group_by_config, interval

_Z_95 = 1.96


@dataclass(frozen=True, slots=True)
class Measured:
    """Probability of the right token with half the width of its 95 % interval, its rank, and the tokens counted."""

    prob: float
    half: float | None
    rank: float
    n: int


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One label in one group of runs."""

    label: str
    group: str
    before: Measured
    after: Measured
    learned: str
    """Where its probability changes abruptly, in words; empty where that was not looked for."""


def behaviours(runs: list[ReportedRun]) -> list[Behaviour]:
    """Every label of every group of runs, label by label.

    Intervals: over seeds (Student's t) where a group has several runs; over the single tokens, taken as independent,
    where it has one.
    """
    groups = group_by_config([run for run in runs if run.has("label_prob", "label_rank") and run.window is not None])
    labels = list(dict.fromkeys(str(name) for group in groups for name in group.runs[0].data["label"].values))
    return [
        Behaviour(
            label,
            group.name,
            _measure(group, label, is_after=False),
            _measure(group, label, is_after=True),
            _learned(group, label),
        )
        for label in labels
        for group in groups
        if all(_n_tokens(run, label) for run in group.runs)
    ]


def _learned(group: Group, label: str) -> str:
    if not all(run.has("label_change_p") for run in group.runs):
        return ""
    at = [list(run.data["label"].values).index(label) for run in group.runs]
    return window_words([finding_of(run.data, "label_change", label=i) for run, i in zip(group.runs, at, strict=True)])


def _n_tokens(run: ReportedRun, label: str) -> int:
    """Held-out tokens that carry the label; 0 where the run does not know it."""
    names = list(run.data["label"].values)
    return int(run.data["label_n"].values[names.index(label)]) if label in names else 0


def _measure(group: Group, label: str, *, is_after: bool) -> Measured:
    found = []
    for run in group.runs:
        assert run.window is not None
        number = list(run.data["label"].values).index(label)
        # Of seeds that were trained for longer, the snapshot where the shortest ends.
        end = np.flatnonzero(run.tokens <= group.common_end)[-1]
        step = int(run.data["snapshot"].values[end]) if is_after else run.window[0]
        prob, rank = run.at("label_prob", step)[number], run.at("label_rank", step)[number]
        single = run.at("labelled_prob", step)[run.data["labelled_label"].values == number]
        found.append((float(prob), float(rank), single, _n_tokens(run, label)))
    mean, half = interval(np.array([prob for prob, *_ in found]))
    if half is None and len(single := found[0][2]) > 1:
        half = _Z_95 * single.std(ddof=1) / np.sqrt(len(single))
    return Measured(
        float(mean), None if half is None else float(half), float(np.mean([rank for _, rank, *_ in found])),
        sum(n for *_, n in found),
    )  # fmt: skip
