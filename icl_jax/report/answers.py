"""Whole answers at the end of the runs, by how many examples stand before them, and when they are learned."""

from dataclasses import dataclass

import numpy as np

from icl_jax.measures.answers_learned import LEVEL
from icl_jax.report.reported_run import ReportedRun, millions
from icl_jax.report.seeds import Group, group_by_config, interval

SHOWN_EXAMPLES = (0, 1, 2, 4, 8)
"""The last stands for 8 and more."""


@dataclass(frozen=True, slots=True)
class AnswersRow:
    """One label in one group of runs, in words; "" where there is nothing to count."""

    label: str
    group: str
    by_examples: list[str]
    """Probability of the whole answer at each of `SHOWN_EXAMPLES`."""
    prob: str
    right: str
    learned: str
    """Tokens to a probability of 0.9: the median of the seeds that reach it, and how many do not."""


def answers(runs: list[ReportedRun]) -> list[AnswersRow]:
    """Every label of every group of runs whose answers were measured, label by label.

    Means over seeds with 95 % intervals (Student's t) where a group has several.
    """
    groups = group_by_config([run for run in runs if run.has("answer_prob", "answer_tokens_all")])
    labels = list(dict.fromkeys(str(name) for group in groups for name in group.runs[0].data["label"].values))
    rows = (_row(group, label) for label in labels for group in groups if label in group.runs[0].data["label"].values)
    return [row for row in rows if row.prob]


def _row(group: Group, label: str) -> AnswersRow:
    def last(variable: str) -> np.ndarray:
        """[run, ...] at the end that all have in common."""
        ends = [int(np.flatnonzero(run.tokens <= group.common_end)[-1]) for run in group.runs]
        return np.stack([_of(run, variable, label)[end] for run, end in zip(group.runs, ends, strict=True)])

    by = last("answer_prob")
    tokens = np.array([_of(run, "answer_tokens_all", label) for run in group.runs])
    return AnswersRow(
        label, group.name, [_words(by[:, n]) for n in SHOWN_EXAMPLES], _words(last("answer_prob_all")),
        _words(last("answer_right_all")), _learned(tokens),
    )  # fmt: skip


def _of(run: ReportedRun, variable: str, label: str) -> np.ndarray:
    """Of one label; the axes behind it stay."""
    values = run.data[variable]
    return np.asarray(values.isel(label=list(run.data["label"].values).index(label)).values)


def _words(of_runs: np.ndarray) -> str:
    if not np.isfinite(of_runs).all():
        return ""
    mean, half = interval(of_runs.astype(np.float64))
    return f"{mean:.2f}" if half is None or half < 0.005 else f"{mean:.2f} ± {half:.2f}"


def _learned(tokens: np.ndarray) -> str:
    found = tokens[np.isfinite(tokens)]
    if not len(found):
        return f"{LEVEL} not reached"
    missing = f"; not by {len(tokens) - len(found)} of {len(tokens)} seeds" if len(found) < len(tokens) else ""
    return f"{millions(float(np.median(found)))}{missing}"
