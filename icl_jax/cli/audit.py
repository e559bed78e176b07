"""`icl-jax audit`: is a series of checkpoints what it says that it is?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import platformdirs
import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from icl_jax import process
from icl_jax.audit.audit import Audit, audit_run, audit_source
from icl_jax.audit.finding import steps_text
from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.importing.sources.open_source import open_source
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from icl_jax.rundir.files import is_bucket
from icl_jax.telling import printable


@dataclass(frozen=True, kw_only=True)
class AuditArgs:
    """Arguments of `icl-jax audit`."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """A run directory, hf:OWNER/NAME (its files alone), a folder of checkpoints or a glob."""
    steps: str = ""
    """Steps and ranges of steps, such as 0,512,1000-4000, of what is no run directory. Default: all."""
    stage: str = ""
    """Of several stages of training: see icl-jax import."""
    figure: str = ""
    """PNG, PDF or SVG of distances. Default: audit.png in the run directory; of other sources none."""


def audit(args: AuditArgs, console: Console) -> int:
    """Print what is found, a row each. Returns 0 where nothing is, else 1. Raises UserError."""
    if args.figure and Path(args.figure).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--figure = {args.figure!r}: must end in .png, .pdf or .svg")
    quiet_orbax()
    process.devices()  # Orbax asks for them
    if RunDir.is_run(args.source):
        if args.steps or args.stage:
            raise UserError("--steps, --stage: are of checkpoints that are no run directory yet; of one all are taken")
        run = RunDir.open(args.source).one()
        found = audit_run(run, lambda line: say(console, line))
        figure = args.figure or ("" if is_bucket(args.source) else str(run.path / "audit.png"))
    else:
        source = open_source(args.source, Path(platformdirs.user_cache_dir("icl_jax")) / "hub", args.stage)
        found = audit_source(source, args.steps, lambda line: say(console, line))
        figure = args.figure
    return tell(found, console, figure)


def tell(found: Audit, console: Console, figure: str = "") -> int:
    """Print an audit and draw its figure. Returns 0 where nothing was found, else 1."""
    for note in found.notes:
        say(console, f"note: {note}")
    if found.findings:
        table = Table("steps", "finding", "what is seen")
        for finding in found.findings:
            cells = (steps_text(finding.steps), finding.kind, finding.said)
            table.add_row(*(Text(printable(cell)) for cell in cells))
        console.print(table)
    if figure:
        from icl_jax.audit.figure import save_picture

        if save_picture(found, Path(figure)):
            say(console, f"the distances: {figure}")
    n, m = len(found.findings), len(found.steps)
    outcome = f"{n} finding{'s' * (n != 1)}" if n else "clean"
    say(console, f"{found.name}: {outcome}: {m} checkpoints, step {found.steps[0]} to {found.steps[-1]}")
    return 1 if n else 0
