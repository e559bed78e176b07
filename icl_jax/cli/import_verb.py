"""`icl-jax import`: checkpoints of others as a run directory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import platformdirs
import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.rundir.checkpoints import quiet_orbax


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Arguments of `icl-jax import`."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """hf:OWNER/NAME (all its steps), hf:OWNER/NAME@REVISION, a folder of one checkpoint or of many, a glob, a .gguf."""
    run: str
    """Run directory; one that is there goes on where it stopped."""
    steps: str = ""
    """Steps and ranges of steps, such as 0,512,1000-4000. Default: all. Of a checkpoint that does not say: its step."""
    stage: str = ""
    """Of several stages of training, such as 2 or 1,2-ingredient3, in the order of training. Default: the first."""
    text: str = ""
    """Held-out rows: manual (Python's own), python (its library's source), a file, folder or glob, or a run directory,
    whose own rows are taken. Default: manual."""
    n_ctx: int = 0
    """Tokens of a row; 0: 512, or what the model takes."""
    tokenizer: str = ""
    """tokenizer.json of the model, where its folder has none."""
    tokens_per_step: int = 0
    """Tokens that a step of its training had; 0: what is known of the series."""
    audit: bool = True
    """Look for damaged, swapped and repeated checkpoints at the end, as icl-jax audit does; reads all once more."""
    ignore: str = ""
    """Options of config.json that change nothing, with commas between: unknown ones are refused otherwise."""


def import_checkpoints(args: ImportArgs, console: Console) -> int:
    """Import what is wanted and not there. Returns the exit status 0. Raises UserError."""
    for name in ("n_ctx", "tokens_per_step"):
        if getattr(args, name) < 0:
            raise UserError(f"--{name.replace('_', '-')} = {getattr(args, name)}: must be 0 or more")
    quiet_orbax()
    from icl_jax.importing.import_run import ImportSettings, import_run
    from icl_jax.importing.sources.open_source import open_source

    settings = ImportSettings(
        steps=args.steps, text=args.text, n_ctx=args.n_ctx, tokenizer=args.tokenizer,
        tokens_per_step=args.tokens_per_step,
        ignored=tuple(name.strip() for name in args.ignore.split(",") if name.strip()),
    )  # fmt: skip
    source = open_source(args.source, Path(platformdirs.user_cache_dir("icl_jax")) / "hub", args.stage)
    run = import_run(source, args.run, settings, lambda line: say(console, line))
    steps = [entry.step for entry in run.manifest.read()]
    if args.audit and len(steps) > 1:
        from icl_jax.audit.audit import audit_run
        from icl_jax.cli.audit import tell

        tell(audit_run(run, lambda line: say(console, line)), console, str(run.path / "audit.png"))
    what = f"{len(steps)} snapshots, step {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")
    missing = (run.imported or {}).get("missing")
    lacking = f"; {len(missing)} left out: {', '.join(sorted(missing, key=int)[:8])}" if missing else ""
    say(console, f"{run.path}: {what}{lacking}; icl-jax analyze {run.path} measures them")
    return 0
