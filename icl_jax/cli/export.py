"""`icl-jax export`: a snapshot in the form that another library loads."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.export.free_folder import free_folder
from icl_jax.export.transformer_lens import check_export, export_snapshot, loading_code
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax


@dataclass(frozen=True, kw_only=True)
class ExportArgs:
    """Arguments of `icl-jax export`."""

    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    to: Literal["transformer-lens", "transformers"]
    """transformer-lens: weights for HookedTransformer of TransformerLens 3, and its config beside them; transformers: a
    folder for the hub, of the class that is exact or our own."""
    step: int = -1
    """Snapshot; -1: the last."""
    all_steps: bool = False
    """Every snapshot (transformers)."""
    out: str = ""
    """transformers: the folder, new or empty; each snapshot is a folder in it. transformer-lens: file of the weights,
    NAME.safetensors; the config becomes NAME.json. Default: RUN/export/STEP.safetensors."""


def export(args: ExportArgs, console: Console) -> int:
    """Write the files and print how to load them. Returns the exit status 0. Raises UserError."""
    is_hub = args.to == "transformers"
    if args.all_steps and not is_hub:
        raise UserError("--all-steps: only with --to transformers")
    if args.all_steps and args.step != -1:
        raise UserError(f"--step = {args.step}: not with --all-steps")
    if is_hub and not args.out:
        raise UserError("--out is missing: the folder to write, new or empty")
    quiet_orbax()
    run, step, out = RunDir.open(args.run).one(), None if args.step == -1 else args.step, args.out or None
    if is_hub:
        return _export_hub_folder(run, step, args, console)
    check_export(run, step, out)
    process.configure_jax(1)
    process.devices()
    weights, config = export_snapshot(run, step, out)
    for line in (f"{weights} and {config.name}, for TransformerLens 3:", "", *loading_code(weights, config)):
        say(console, line)
    return 0


def _export_hub_folder(run: RunDir, step: int | None, args: ExportArgs, console: Console) -> int:
    entries = run.snapshots()
    if not args.all_steps:
        entries = entries[-1:] if step is None else [run.snapshot(step)]
    free_folder(args.out)
    process.configure_jax(1)
    process.devices()
    from icl_jax.export.hub_folder import export_hub_folder  # after JAX is configured

    exported = export_hub_folder(run, args.out, entries)
    steps = [entry.step for entry in entries]
    what = f"step{steps[0]}" if len(steps) == 1 else f"{len(steps)} snapshots, step{steps[0]} to step{steps[-1]}"
    say(console, f"{exported.path}: {what}, {exported.form.family.architecture}")
    if not exported.has_tokenizer:
        say(console, "no tokenizer: the corpus is one of token ids")
    trust = ", trust_remote_code=True" if exported.form.is_own else ""
    say(console, "")
    say(console, "from transformers import AutoModelForCausalLM")
    say(console, f"model = AutoModelForCausalLM.from_pretrained({str(exported.path / f'step{steps[-1]}')!r}{trust})")
    return 0
