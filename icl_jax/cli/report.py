"""`icl-jax report`: runs as one page, with every figure behind it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.analysis.checks import check_analysis
from icl_jax.cli.analyze import bring_up_to_date
from icl_jax.config import UserError
from icl_jax.config.what_it_is import what_it_is
from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from icl_jax.rundir.files import is_bucket


@dataclass(frozen=True, kw_only=True)
class ReportArgs:
    """Arguments of `icl-jax report`."""

    runs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")] = ()
    """Run directories: a column of the page each; of one with members some are, and all are shown together."""
    out: str = ""
    """Folder of the report. Default: report/ in the first run directory."""


def report(args: ReportArgs, console: Console) -> int:
    """Write the page, analyzing first what never was or has changed since. Returns the status 0. Raises UserError."""
    if not args.runs:
        raise UserError("RUN is missing; see icl-jax report --help")
    if not args.out and is_bucket(args.runs[0]):
        raise UserError(f"--out is missing: {args.runs[0]} is a bucket, and a report goes into a local folder")
    out = Path(args.out or Path(args.runs[0]) / "report")
    found = next((path for path in (out, *out.parents) if what_it_is(path)), None)
    if found is not None and not found.is_dir():
        raise UserError(f"--out = {str(out)!r}: {found} is a {what_it_is(found)}: must be a folder")
    runs = [RunDir.open(path) for path in args.runs]
    for run in runs:
        for one in run.each():
            check_analysis(one)
    waiting = [str(run.path) for run in runs if not (run.path / "analysis.zarr").exists()]
    if waiting:
        say(console, f"no analysis yet of {', '.join(waiting)}: taking it first")
    quiet_orbax()
    process.configure_jax(process.cpu_count())
    process.devices()
    for run in runs:
        bring_up_to_date(run, console)
    from icl_jax.report import write_report  # after JAX is configured

    say(console, f"the page: {write_report(list(args.runs), out)}")
    return 0
