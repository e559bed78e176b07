"""A report: one page and the figures behind it, in a folder."""

from pathlib import Path, PurePath

from icl_jax.analysis.dataset import asked_of, load_dataset, outdated
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import UserError
from icl_jax.report.figures.figure import ComparisonFigure
from icl_jax.report.figures.over_members import ReportedMembers
from icl_jax.report.figures.table import FIGURES
from icl_jax.report.members import members_figures, reported_members, save_members_csv, shown_members
from icl_jax.report.page.html import render_page
from icl_jax.report.page.page_data import page_data
from icl_jax.report.pictures import save_figure
from icl_jax.report.reported_run import open_runs, short_names
from icl_jax.report.seeds import choose
from icl_jax.rundir import RunDir
from icl_jax.rundir.files import absolute


def write_report(paths: list[str], out: Path) -> Path:
    """Write OUT/index.html, and OUT/figures/ with every figure as PNG, PDF and CSV. Returns the page's path.

    A run without an analysis, or that has changed since, is analyzed first; one with members must have been. Of such a
    run all members are shown together, and some one by one. Raises UserError if a run cannot be read or `out` not be
    written.
    """
    members, paths = _with_members(paths)
    runs = open_runs(paths)
    for run in runs:
        if not run.is_analyzed:
            analyze(run.run)
        elif outdated(run.run, known := load_dataset(run.run.path / "analysis.zarr")):
            analyze(run.run, **asked_of(known))
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        shown = choose(runs)
        for figure in FIGURES:
            save_figure(figure, runs if isinstance(figure, ComparisonFigure) else shown, out / "figures")
        if members:
            for over in members_figures(members):
                save_figure(over, members, out / "figures")
            save_members_csv(members, out / "figures" / "members.csv")
        page = out / "index.html"
        page.write_text(render_page(page_data(runs, members)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    return page


def _with_members(paths: list[str]) -> tuple[list[ReportedMembers], list[str]]:
    """The runs with members, and the paths of runs that are shown one by one, their chosen members among them."""
    opened = [RunDir.open(path) for path in paths]
    several = [run for run in opened if run.config.members]
    names = short_names([PurePath(absolute(run.path)).parts for run in several])
    members: list[ReportedMembers] = []
    single = []
    for path, run in zip(paths, opened, strict=True):
        if not run.config.members:
            single.append(path)
            continue
        members.append(reported_members(run, names[len(members)]))
        single += [str(run.member(k).path) for k in shown_members(members[-1].data)]
    return members, single
