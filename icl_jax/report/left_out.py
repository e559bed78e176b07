"""What a report will lack, said before the run is trained: figures and columns whose measurements nobody asks for."""

from collections.abc import Collection

from icl_jax.measures.table import TABLE
from icl_jax.report.figures.figure import RunFigure
from icl_jax.report.figures.table import FIGURES
from icl_jax.report.suite.suite_table import COLUMNS

_OWNER = {variable: entry.name for entry in TABLE for variable in entry.variables}


def left_out(source: str, measurements: Collection[str]) -> list[str]:
    """Names of what needs a measurement that is not among these, of a run on data.source `source`."""
    figures = [
        figure
        for figure in FIGURES
        if not isinstance(figure, RunFigure) or (figure.is_of(source) and not figure.on_request)
    ]
    needs = {column.title: column.needs for column in COLUMNS} | {figure.name: figure.needs for figure in figures}
    return [
        name
        for name, variables in needs.items()
        if any(variable in _OWNER and _OWNER[variable] not in measurements for variable in variables)
    ]
