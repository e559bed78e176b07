"""`icl-jax behaviours`: a run's model asked in words, behaviour by behaviour."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Column, Table
from tyro.conf import Positional

from icl_jax import process
from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax


@dataclass(frozen=True, kw_only=True)
class BehavioursArgs:
    """Arguments of `icl-jax behaviours`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    only: str = ""
    """Behaviours, with commas between them; empty: all."""
    prompts: int = 512
    """Prompts of each behaviour."""
    step: int = -1
    """Snapshot; -1: the last."""
    seed: int = 0
    """Of what the prompts hold."""


def behaviours(args: BehavioursArgs, console: Console) -> int:
    """Print a line for each behaviour and keep all in RUN. Returns the exit status 0. Raises UserError."""
    quiet_orbax()
    run = RunDir.open(args.run).one()
    if args.seed < 0:
        raise UserError(f"--seed = {args.seed}: must be 0 or more")
    only = tuple(filter(None, args.only.split(",")))
    if args.step != -1:
        run.snapshot(args.step)
    process.configure_jax(process.cpu_count())
    process.devices()
    from icl_jax.analysis.behaviours import ask

    asked = ask(
        run, only, args.prompts, None if args.step == -1 else args.step, args.seed, lambda told: say(console, told)
    )
    asked.save(run)
    table = Table(
        Column("behaviour", no_wrap=True), Column("probability", justify="right"), Column("right", justify="right"),
        Column("rank", justify="right"), Column("heads for the answer"), box=None,
    )  # fmt: skip
    for each in asked.found:
        heads = "  ".join(f"{name} {value:+.1f}" for name, value in each.top_heads(3))
        table.add_row(
            each.name, f"{each.prob:.2f} ±{1.96 * each.sem:.2f}", f"{each.accuracy:.2f}", f"{each.rank:g}", heads
        )
    console.print(table)
    for name, why in asked.refused.items():
        say(console, f"{name}: not asked: {why}")
    say(
        console, f"{run.path}: step {asked.step}, {args.prompts} prompts of each, in behaviours.json and behaviours.csv"
    )
    return 0
