"""Runs that differ in nothing but their seeds, as one: mean and interval."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from icl_jax.config import Config, experiment
from icl_jax.report.reported_run import ReportedRun

_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Group:
    """Runs of one config; one run is a group too."""

    runs: list[ReportedRun]

    @property
    def name(self) -> str:
        """The run's, or for several the first one's and their number."""
        first = self.runs[0].name
        return first if len(self.runs) == 1 else f"{first} ({len(self.runs)} seeds)"

    @property
    def common_end(self) -> float:
        """Training tokens that all of the runs have seen."""
        return float(min(run.tokens[-1] for run in self.runs))

    def mean_curve(self, variable: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Tokens, mean, lower and upper end of the 95 % interval of a [snapshot] variable; no ends for one run.

        Curves are interpolated to the snapshots of the first run where not all have the same. The mean ends where the
        shortest run does: beyond, it would be one of other runs.
        """
        first, end = max(run.tokens[0] for run in self.runs), self.common_end
        tokens = self.runs[0].tokens.astype(np.float64)
        tokens = tokens[(tokens >= first) & (tokens <= end)]
        curves = np.stack([np.interp(tokens, run.tokens, run.data[variable].values) for run in self.runs])
        mean, half = interval(curves)
        return tokens, mean, *((None, None) if half is None else (mean - half, mean + half))


MOST = 12
"""Models that a chart can tell apart, and that a page shows everything of."""


def choose(runs: list[ReportedRun]) -> list[ReportedRun]:
    """The runs that are shown one by one: all, or of too many one of each experiment and then more, in their order."""
    if len(runs) <= MOST:
        return runs
    first = [group.runs[0].name for group in group_by_config(runs)]
    chosen = list(dict.fromkeys([*first, *(run.name for run in runs)]))[:MOST]
    return [run for run in runs if run.name in chosen]


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean over the first axis, and half the width of its 95 % interval (Student's t); None for a single value."""
    n = len(values)
    mean = values.mean(axis=0)
    if n < 2:
        return mean, None
    return mean, stats.t.ppf((1 + _LEVEL) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)


def group_by_config(runs: list[ReportedRun]) -> list[Group]:
    """Runs of one experiment, which differ in their seeds at most, in the order in which they first come."""
    groups: dict[Config, Group] = {}
    for run in runs:
        groups.setdefault(experiment(run.config), Group([])).runs.append(run)
    return list(groups.values())
