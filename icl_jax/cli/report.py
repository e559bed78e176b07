"""`icl-jax report`: pictures of runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.config import UserError


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Arguments of `icl-jax report`."""

    runs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")] = ()
    """Run directories; several are also compared in one picture."""
    out: str = ""
    """Folder of the pictures. Default: report/ in the first run directory."""


def report(args: ReportArgs, console: Console) -> int:
    """Draw each run's curves, and the comparison where there are several. Raises UserError."""
    if not args.runs:
        raise UserError("RUN is missing; see icl-jax report --help")
    from icl_jax.report.phase_change import load_curve, plot_phase_change
    from icl_jax.report.run_overview import plot_run

    curves = [load_curve(path, Path(path).name) for path in args.runs]
    out = Path(args.out or Path(args.runs[0]) / "report")
    try:
        out.mkdir(parents=True, exist_ok=True)
        pictures = [out / f"{curve.name}.png" for curve in curves]
        for curve, picture in zip(curves, pictures, strict=True):
            plot_run(curve, picture)
        if len(curves) > 1:
            pictures.append(out / "phase_change.png")
            plot_phase_change(curves, pictures[-1])
    except OSError as error:
        raise UserError(f"{out}: cannot write the report: {error.strerror}") from None
    for picture in pictures:
        console.print(str(picture), markup=False, highlight=False, soft_wrap=True)
    return 0
