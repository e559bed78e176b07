"""The short table that a suite ends with, and its behaviours as CSV and Markdown."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from icl_jax.report.behaviours import Behaviour, Measured, behaviours
from icl_jax.report.reported_run import ReportedRun, open_runs
from icl_jax.report.seeds import interval


def suite_table(titles: dict[str, list[str]]) -> Table:
    """One row for each title: where the phase change lies, ICL score and best prefix matching across it.

    `titles`: paths of the analyzed runs under each title, one a seed. Means over seeds with 95 % intervals.
    Without an induction head (prefix matching on random tokens) the scores are those of a tenth of the run and its end.
    """
    table = Table(
        Column("model", no_wrap=True), "induction heads form", "ICL score (nats)", "best prefix matching", box=None
    )
    for title, paths in titles.items():
        runs = open_runs(paths)
        n_changed = sum(run.forms_induction for run in runs)
        name = title if len(runs) == 1 else f"{title} ({len(runs)} seeds)"
        table.add_row(
            name,
            _window(runs) if n_changed == len(runs) else "no" if not n_changed else f"in {n_changed} of {len(runs)}",
            " -> ".join(_mean([_icl(run)[end] for run in runs]) for end in (0, 1)),
            " -> ".join(_mean([_best_matching(run)[end] for run in runs]) for end in (0, 1)),
        )
    return table


def _ends(run: ReportedRun) -> tuple[int, int]:
    """Indexes of the snapshots before and after."""
    steps = list(run.data["snapshot"].values)
    if run.forms_induction and run.window is not None:
        return steps.index(run.window[0]), steps.index(run.window[1])
    return int(np.searchsorted(steps, steps[-1] / 10)), len(steps) - 1


def _icl(run: ReportedRun) -> np.ndarray:
    return run.data["icl_windowed"].values[list(_ends(run))]


def _best_matching(run: ReportedRun) -> np.ndarray:
    """Of the head that is best at the end; 0 without heads."""
    if not run.has("prefix_matching"):
        return np.zeros(2)
    scores = run.data["prefix_matching"].values.reshape(run.data.sizes["snapshot"], -1)
    return scores[list(_ends(run)), int(np.argmax(scores[-1]))]


def _window(runs: list[ReportedRun]) -> str:
    ends = [_mean([float(run.data[f"phase_{side}_tokens"]) / 1e6 for run in runs], 1) for side in ("start", "end")]
    return f"{ends[0]} to {ends[1]} M tokens"


def _mean(values: Sequence[float], digits: int = 2) -> str:
    mean, half = interval(np.array(values, np.float64))
    return f"{mean:.{digits}f}" if half is None else f"{mean:.{digits}f} ±{half:.{digits}f}"


def behaviours_by_title(titles: dict[str, list[str]]) -> dict[str, list[Behaviour]]:
    """The behaviours of each title's runs; without those whose corpus labels no tokens."""
    found = {title: behaviours(open_runs(paths)) for title, paths in titles.items()}
    return {title: each for title, each in found.items() if each}


def behaviour_tables(found: dict[str, list[Behaviour]]) -> Iterator[Table]:
    """Behaviours down, models across: probability of the right token at the end of the runs; a table for each corpus.

    With the half width of its 95 % interval where that does not round to 0.
    """
    labels_of = {title: tuple(b.label for b in each) for title, each in found.items()}
    for labels in dict.fromkeys(labels_of.values()):
        alike = {title: each for title, each in found.items() if labels_of[title] == labels}
        table = Table(Column("right token\nat the end", no_wrap=True), *alike, box=None)
        for label, *each in zip(labels, *alike.values(), strict=True):
            table.add_row(label, *(_with_half(b.after) for b in each))
        yield table


def _with_half(measured: Measured) -> str:
    half = f"{measured.half or 0:.2f}"
    return f"{measured.prob:.2f}" + ("" if half == "0.00" else f" ±{half}")


_FIELDS = ("model", "behaviour", "when", "probability", "half_width_95", "mean_rank", "held_out_tokens")


def write_behaviours(found: dict[str, list[Behaviour]], path: Path) -> None:
    """Write every number of the behaviour table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_FIELDS)
        for title, each in found.items():
            for behaviour in each:
                for when, m in (("before the change", behaviour.before), ("at the end", behaviour.after)):
                    half = "" if m.half is None else f"{m.half:.6g}"
                    writer.writerow([title, behaviour.label, when, f"{m.prob:.6g}", half, f"{m.rank:.6g}", m.n])
