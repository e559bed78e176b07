"""`icl-jax export`: a snapshot in the form that another library loads."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.display import say
from icl_jax.export.transformer_lens import check_export, export_snapshot, loading_code
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Arguments of `icl-jax export`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    to: Literal["transformer-lens"]
    """transformer-lens: weights for HookedTransformer of TransformerLens 3, and its config beside them."""
    step: int = -1
    """Snapshot; -1: the last."""
    out: str = ""
    """File of the weights, NAME.safetensors; the config becomes NAME.json. Default: RUN/export/STEP.safetensors."""


def export(args: ExportArgs, console: Console) -> int:
    """Write the files and print how to load them. Returns the exit status 0. Raises UserError."""
    quiet_orbax()
    run, step, out = RunDir.open(args.run), None if args.step == -1 else args.step, args.out or None
    check_export(run, step, out)
    process.configure_jax(1)
    process.devices()
    weights, config = export_snapshot(run, step, out)
    for line in (f"{weights} and {config.name}, for TransformerLens 3:", "", *loading_code(weights, config)):
        say(console, line)
    return 0
