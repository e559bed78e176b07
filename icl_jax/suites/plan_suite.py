"""What a suite needs on TPU slices, from the compiled programs, in place of training it on a CPU."""

from pathlib import Path

from rich.console import Console

from icl_jax.display import say
from icl_jax.plan.kept import kept_plans
from icl_jax.plan.tell import table_rows
from icl_jax.suites.run_suite import suite_runs
from icl_jax.suites.suite import Suite


def plan_suite(suite: Suite, out: Path, console: Console) -> bool:
    """Print the plan of each run that names a slice; False where none does. Raises UserError."""
    runs = {name: config for name, config in suite_runs(suite).items() if config.launch.topology}
    if not runs:
        return False
    say(console, "no accelerator here: the plan of each run on its slice, compiled for it; a bound, not a forecast")
    plans = kept_plans(runs, out / "plan", console)
    for line in table_rows(plans):
        say(console, line)
    estimates = [plan.estimate for plan in plans if plan.estimate is not None]
    usd = sum(estimate.usd or 0.0 for estimate in estimates)
    say(console, f"{len(plans)} runs, {sum(e.chip_hours for e in estimates):,.0f} chip-hours, ${usd:,.0f} at best")
    say(console, "the same command trains on the chips of one machine; on each machine of a slice, a run at a time:")
    say(console, f"icl-jax train {next(iter(runs))} --coordinator auto --run gs://BUCKET/...")
    return True
