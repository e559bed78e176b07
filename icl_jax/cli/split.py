"""`icl-jax split`: a member of a run with members, as a run of its own."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from icl_jax.rundir.split import split as split_run


@dataclass(frozen=True, kw_only=True)
class SplitArgs:
    """Arguments of `icl-jax split`."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory with members."""
    member: int
    """Which member, counted from 0."""
    run: str
    """The new run directory."""


def split(args: SplitArgs, console: Console) -> int:
    """Write the new run. Returns the exit status 0. Raises UserError."""
    quiet_orbax()
    source = RunDir.open(args.source)
    if not source.config.members:
        raise UserError(f"{source.path}: has no members: it is one run")
    member = source.member(args.member)
    process.devices()  # Orbax asks for them
    new = split_run(member, args.run)
    steps = f"{new.load_record().sizes['step']} of {new.config.train.n_steps} steps"
    say(console, f"{new.path}: {steps}, {len(new.manifest.read())} snapshots of {member.path}")
    return 0
