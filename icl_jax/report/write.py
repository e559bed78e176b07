"""A report: one page and the figures behind it, in a folder."""

from pathlib import Path

from icl_jax.analysis.dataset import asked_of, load_dataset, outdated
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import UserError
from icl_jax.report.figures.figure import ComparisonFigure
from icl_jax.report.figures.table import FIGURES
from icl_jax.report.page.html import render_page
from icl_jax.report.page.page_data import page_data
from icl_jax.report.pictures import save_figure
from icl_jax.report.reported_run import open_runs
from icl_jax.report.seeds import choose


def write_report(paths: list[str], out: Path) -> Path:
    """Write OUT/index.html, and OUT/figures/ with every figure as PNG, PDF and CSV. Returns the page's path.

    A run without an analysis, or that has changed since, is analyzed first. Raises UserError if a run cannot be read or
    `out` not be written.
    """
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
        page = out / "index.html"
        page.write_text(render_page(page_data(runs)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror or error}") from None
    return page
