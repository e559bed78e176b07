"""`icl-jax reproduce`: a suite of runs, trained, analyzed and put into one report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.cli.compile import plan_suite, table_rows
from icl_jax.config import Config, UserError
from icl_jax.config.builtin import suite_file
from icl_jax.display import say
from icl_jax.suites.jobs import has_accelerators
from icl_jax.suites.run_suite import run_suite, suite_runs
from icl_jax.suites.suite import load_suite


@dataclass(frozen=True, kw_only=True)
class ReproduceArgs:
    """Arguments of `icl-jax reproduce`."""

    suite: Annotated[Positional[str], tyro.conf.arg(metavar="SUITE")] = "quick"
    """The name of a suite that comes with icl-jax, or a TOML file."""
    out: str = ""
    """Folder of the runs and the report. Default: runs/NAME-OF-SUITE."""
    jobs: int = 0
    """Runs at a time; 0: one for each GPU, or for each CPU core."""


def reproduce(args: ReproduceArgs, console: Console) -> int:
    """Go on with the suite where it stands. Returns 0, or 130 on SIGINT. Raises UserError."""
    if args.jobs < 0:
        raise UserError(f"--jobs = {args.jobs}: must be 0 or more")
    suite = load_suite(suite_file(args.suite))
    out = Path(args.out or Path("runs") / suite.name)
    runs = suite_runs(suite)
    if any(config.launch.topology for config in runs.values()) and not has_accelerators():
        _plan(runs, out, console)
        return 0
    return run_suite(suite, out, args.jobs, console)


def _plan(runs: Mapping[str, Config], out: Path, console: Console) -> None:
    """What the suite needs on TPU slices, from the compiled programs, in place of training it on a CPU."""
    say(console, "no accelerator here: the plan of each run on its slice, compiled for it; a bound, not a forecast")
    plans = plan_suite({name: config for name, config in runs.items() if config.launch.topology}, out / "plan", console)
    for line in table_rows(plans):
        say(console, line)
    estimates = [plan.estimate for plan in plans if plan.estimate is not None]
    usd = sum(estimate.usd or 0.0 for estimate in estimates)
    say(console, f"{len(plans)} runs, {sum(e.chip_hours for e in estimates):,.0f} chip-hours, ${usd:,.0f} at best")
    say(console, "the same command trains on the chips of one machine; on each machine of a slice, a run at a time:")
    say(console, f"icl-jax train {next(iter(runs))} --coordinator auto --run gs://BUCKET/...")
