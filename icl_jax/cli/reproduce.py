"""`icl-jax reproduce`: a suite of runs, trained, analyzed and put into one report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.config import UserError
from icl_jax.config.builtin import suite_file
from icl_jax.suites.jobs import has_accelerators
from icl_jax.suites.plan_suite import plan_suite
from icl_jax.suites.run_suite import run_suite
from icl_jax.suites.suite import load_suite, with_seeds


@dataclass(frozen=True, kw_only=True)
class ReproduceArgs:
    """Arguments of `icl-jax reproduce`."""

    suite: Annotated[Positional[str], tyro.conf.arg(metavar="SUITE")] = "quick"
    """The name of a suite that comes with icl-jax, or a TOML file."""
    out: str = ""
    """Folder of the runs and the report. Default: runs/NAME-OF-SUITE."""
    seeds: str = ""
    """Seeds in place of the suite's, such as 0..99: those of each experiment are trained as members of one run."""
    jobs: int = 0
    """Runs at a time; 0: one for each GPU, or for each CPU core."""


def reproduce(args: ReproduceArgs, console: Console) -> int:
    """Go on with the suite where it stands. Returns 0, or 130 on SIGINT. Raises UserError."""
    if args.jobs < 0:
        raise UserError(f"--jobs = {args.jobs}: must be 0 or more")
    suite = load_suite(suite_file(args.suite))
    suite = with_seeds(suite, args.seeds) if args.seeds else suite
    out = Path(args.out or Path("runs") / suite.name)
    if not has_accelerators() and plan_suite(suite, out, console):
        return 0
    return run_suite(suite, out, args.jobs, console)
