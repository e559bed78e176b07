"""The short table that a suite ends with, and its behaviours as CSV and Markdown."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Column, Table

from icl_jax.report.behaviours import Behaviour, Measured, behaviours
from icl_jax.report.changes import window_words
from icl_jax.report.reported_run import ReportedRun, open_runs
from icl_jax.report.seeds import interval


@dataclass(frozen=True, slots=True)
class _Cells:
    """A column of the table."""

    title: str
    needs: tuple[str, ...]
    """Variables of analysis.zarr; a run that lacks one was not measured."""
    cell: Callable[[list[ReportedRun]], str]
    """Of the runs of one title."""


def suite_table(titles: dict[str, list[str]]) -> Table:
    """One row for each title: the phase change of the ICL score, ICL score and best prefix matching across it.

    `titles`: paths of the analyzed runs under each title, one a seed. Means over seeds with 95 % intervals. Without a
    change the scores are those of a tenth of the run and its end. Induction heads: by prefix matching on random tokens.
    """
    table = Table(Column("model", no_wrap=True), *(column.title for column in COLUMNS), box=None)
    for title, paths in titles.items():
        runs = open_runs(paths)
        name = title if len(runs) == 1 else f"{title} ({len(runs)} seeds)"
        table.add_row(name, *(_cell(column, runs) for column in COLUMNS))
    return table


def _cell(column: _Cells, runs: list[ReportedRun]) -> str:
    return "not measured" if any(run.not_taken(*column.needs) for run in runs) else column.cell(runs)


def _forming(runs: list[ReportedRun]) -> str:
    n_forming = sum(bool(run.forms_induction) for run in runs)
    return {0: "no", len(runs): "yes"}.get(n_forming, f"in {n_forming} of {len(runs)}")


def _across(curve: Callable[[ReportedRun], np.ndarray]) -> Callable[[list[ReportedRun]], str]:
    """A [snapshot] curve before and after."""
    return lambda runs: " -> ".join(_mean([curve(run)[run.before_after[end]] for run in runs]) for end in (0, 1))


def _best_matching(run: ReportedRun) -> np.ndarray:
    """Of the head that is best at the end, [snapshot]; 0 without heads."""
    if not run.has("prefix_matching"):
        return np.zeros(len(run.tokens))
    scores = run.data["prefix_matching"].values.reshape(len(run.tokens), -1)
    return scores[:, int(np.argmax(scores[-1]))]


COLUMNS = (
    _Cells("phase change", ("change_p",), lambda runs: window_words([run.phase for run in runs if run.phase])),
    _Cells("induction heads", ("prefix_matching",), _forming),
    _Cells("ICL score (nats)", ("icl_windowed",), _across(lambda run: run.data["icl_windowed"].values)),
    _Cells("best prefix matching", ("prefix_matching",), _across(_best_matching)),
)


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


_FIELDS = ("model", "behaviour", "when", "probability", "half_width_95", "mean_rank", "held_out_tokens", "learned")


def write_behaviours(found: dict[str, list[Behaviour]], path: Path) -> None:
    """Write every number of the behaviour table as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_FIELDS)
        for title, each in found.items():
            for behaviour in each:
                for when, m in (("before the change", behaviour.before), ("at the end", behaviour.after)):
                    half = "" if m.half is None else f"{m.half:.6g}"
                    row = [title, behaviour.label, when, f"{m.prob:.6g}", half, f"{m.rank:.6g}", m.n]
                    writer.writerow([*row, behaviour.learned])
