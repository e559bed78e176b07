"""Write the table of docs/laws.md: `python docs/tools/laws.py docs/laws.md SUITE_FOLDER`, and docs/laws.png beside it.

SUITE_FOLDER: what `icl-jax reproduce laws` has made. Every number between the marks of the page is from there.
"""

import sys
from pathlib import Path

import numpy as np
from made_part import replace_part, save_small

from icl_jax.config.builtin import suite_file
from icl_jax.report.axes import axes_of, formed, laws_rows
from icl_jax.report.figures.laws import LAWS
from icl_jax.report.figures.over_members import ReportedMembers
from icl_jax.report.members import reported_members
from icl_jax.rundir import RunDir
from icl_jax.suites.suite import load_suite


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _of_run(title: str, run: ReportedMembers) -> list[str]:
    """A row for each learning rate of a run: when heads have formed, and in how many."""
    rows, (tokens, has_formed) = [], formed(run)
    assert run.config is not None
    rates = np.array([run.config.member(k).optimizer.lr for k in range(len(tokens))])
    for rate in np.unique(rates):
        here = rates == rate
        steps = tokens[here] / run.config.tokens_per_step
        ends = " to ".join(f"{one * 1e-6:.3g}" for one in (tokens[here].min(), tokens[here].max()))
        name = title if len(np.unique(rates)) == 1 else f"learning rate {rate:g}"
        middle = f"{np.median(tokens[here]) * 1e-6:.3g}"
        rows.append(_row([name, f"{has_formed[here].sum()} of {here.sum()}", middle, ends, f"{np.median(steps):.0f}"]))
    return rows


def tables(titles: list[str], runs: list[ReportedMembers]) -> str:
    """The part of the page that is made."""
    header, rows = laws_rows(axes_of(runs))
    parts = [
        _row(header), _row(["---"] * len(header)), *map(_row, rows), "", "![When heads form](laws.png)", "",
        "Medians and ends count a seed without a head where it was last looked at.", "",
        _row(["", "formed", "median, M tokens", "from to", "median, steps"]), _row(["---"] * 5),
        *(line for title, run in zip(titles, runs, strict=True) for line in _of_run(title, run)),
    ]  # fmt: skip
    return "\n".join(parts)


def write(page: Path, folder: Path) -> None:
    """Replace what stands between the marks of the page. Raises UserError where an analysis is missing or damaged."""
    members = load_suite(suite_file("laws")).members
    runs = [reported_members(RunDir.open(str(folder / one.name)), one.name) for one in members]
    replace_part(page, "laws.py", tables([one.title for one in members], runs))
    save_small(LAWS, runs, page.with_suffix(".png"), width=1100)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
