"""`icl-jax sweep`: W&B's sweep file over fields of a config, by W&B's scheduler online or drawn here without it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.cli.arguments import find_config
from icl_jax.config import UserError


@dataclass(frozen=True, kw_only=True)
class SweepArgs:
    """Arguments of `icl-jax sweep`."""

    sweep: Annotated[Positional[str], tyro.conf.arg(metavar="SWEEP.yaml")]
    """W&B's sweep file; its parameters are fields of the config, such as model.n_layers."""
    config: Annotated[Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """A TOML file, or the name of a config that comes with icl-jax: every field that the sweep does not set."""
    count: int = 0
    """Runs; 0: the whole grid, or until W&B has no more."""
    out: str = ""
    """Folder of the runs. Default: runs/NAME-OF-SWEEP-FILE."""
    jobs: int = 0
    """Without W&B's scheduler: runs at a time; 0: one for each GPU, or for each CPU core."""
    apart: bool = False
    """Without W&B's scheduler: each run by itself, where those that differ in no shape would be the members of one."""
    dry_run: bool = False
    """Only show what would be run."""


def sweep(args: SweepArgs, console: Console) -> int:
    """Go on with the sweep where it stands. Returns 0, or 130 on SIGINT. Raises UserError."""
    for name, number in (("--count", args.count), ("--jobs", args.jobs)):
        if number < 0:
            raise UserError(f"{name} = {number}: must be 0 or more")
    from icl_jax.suites.run_sweep import run_local, run_online
    from icl_jax.suites.sweep_file import load_sweep

    file = load_sweep(Path(args.sweep))
    path, base = find_config(args.config)
    out = Path(args.out or Path("runs") / file.path.stem)
    from icl_jax.train.watch.wandb_run import auto_mode

    if base.tracker.wandb in ("auto", "online") and auto_mode()[0] == "online":
        return run_online(file, path, base, out, console, count=args.count, dry_run=args.dry_run)
    return run_local(
        file, base, out, console, count=args.count, n_slots=args.jobs, dry_run=args.dry_run, is_apart=args.apart
    )
