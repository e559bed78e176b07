"""`icl-jax branch`: training that goes on from a snapshot of another run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.cli.arguments import ConfigArgs
from icl_jax.cli.train import TrainArgs, train
from icl_jax.config import Config, UserError
from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from icl_jax.train.branch import default_config, open_branch, with_its_tokenizer


@dataclass(frozen=True, kw_only=True)
class BranchArgs(ConfigArgs):
    """Arguments of `icl-jax branch`."""

    config: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory whose snapshot it begins with; its config is that of the branch, but for the fields that are given.
    Of an imported run only [model] and the text are, and the rest is as by default."""
    at: int
    """Step of the snapshot."""
    run: str
    """Run directory of the branch, a new path; the same command again resumes."""
    anew: bool = False
    """Count steps from 0, with a fresh optimiser; of an imported run always."""
    fresh_optimizer: bool = False
    """Begin with an optimiser that has seen nothing, though the parent has its state."""
    devices: int = 0
    """As of icl-jax train."""


def config_of(run: str) -> Config:
    """What the fields are unless given. Raises UserError for what is no run directory."""
    return default_config(RunDir.open(run).one())


def branch(args: BranchArgs, console: Console, given: Sequence[str]) -> int:
    """Make the branch and train it to its end. Returns the exit status, as `train` does. Raises UserError."""
    if not args.run:
        raise UserError("--run = '': must be a path")
    quiet_orbax()
    found = open_branch(args.config, args.at, is_anew=args.anew, fresh_optimizer=args.fresh_optimizer)
    config = with_its_tokenizer(found.parent, args.overrides)
    if config.members:
        raise UserError(f"members = {len(config.members)}: a branch is one run")
    found.check(config)
    fresh = f"fresh: {', '.join(found.fresh)}" if found.fresh else "from its full state"
    changed = found.changed_fields(config)
    what = ", ".join(f"{name} = {value!r}" for name, (_, value) in changed.items()) or "no field changed"
    say(console, f"{args.run}: step {found.step} of {found.parent.path}; {fresh}; {what}")
    return train(
        TrainArgs(config=args.config, run=args.run, devices=args.devices, overrides=config), console, given, found
    )
