"""`icl-jax launch`: the same training command on a TPU slice, a cluster or several local processes."""

import re
import shlex
import shutil
import subprocess
from dataclasses import Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax.cli.arguments import ConfigArgs
from icl_jax.config import UserError
from icl_jax.launchers.table import TARGETS

_BY_NAME = {target.name: target for target in TARGETS}
_ON: Any = Literal.__getitem__(tuple(_BY_NAME))


def _flags() -> list[Any]:
    """The flags of all targets, for make_dataclass; in the help of each stand those that take it."""
    helps: dict[str, dict[str, list[str]]] = {}
    declared: dict[str, Field[Any]] = {}
    for target in TARGETS:
        for one in fields(target.options):
            declared.setdefault(one.name, one)
            helps.setdefault(one.name, {}).setdefault(one.metadata["help"], []).append(target.name)
    said = {name: " ".join(f"{', '.join(on)}: {help}" for help, on in by.items()) for name, by in helps.items()}
    return [
        (name, Annotated[one.type, tyro.conf.arg(help=said[name])], field(default=one.default))
        for name, one in declared.items()
    ]


@dataclass(frozen=True, kw_only=True)
class _SharedArgs(ConfigArgs):
    on: str = "local"
    run: str = ""
    """Run directory: gs://BUCKET/... in a cloud, whose machines go away; on slurm and local also a path."""
    name: str = ""
    """Name of the job. Default: the config's."""
    dry_run: bool = False
    """Print the files and the command, and run nothing."""


_FLAGS = _flags()
_WHERE = Annotated[_ON, tyro.conf.arg(help=f"Where: {', '.join(target.where for target in TARGETS)}.")]
LaunchArgs = make_dataclass(
    "LaunchArgs", [("on", _WHERE, "local"), *_FLAGS], bases=(_SharedArgs,), frozen=True, kw_only=True
)


def launch(args: _SharedArgs, console: Console) -> int:
    """Hand the job to the target's tool and return its exit status, or print what would be handed over.

    Raises UserError for options that the target has no use for or lacks, where the tool is not installed, and where the
    batch does not divide evenly over the slice.
    """
    target = _BY_NAME[args.on]
    options = target.read({name: (getattr(args, name), one.default) for name, _, one in _FLAGS})
    job = target.job(args.name, args.run, args.overrides, Path(args.config).stem)
    plan = target.plan(job, options)
    if args.dry_run:
        for file, text in plan.files.items():
            console.out(f"# {job.folder / file}\n{text}", highlight=False)
        for command in plan.commands:
            console.out(f"$ {shlex.join(command)}", highlight=False)
        return 0
    if target.tool:
        _require(target.tool, args.on)
    job.folder.mkdir(parents=True, exist_ok=True)
    for file, text in plan.files.items():
        (job.folder / file).write_text(text, encoding="utf-8")
    return target.run(plan.commands, console)


def _require(tool: str, target: str) -> None:
    if shutil.which(tool) is None:
        raise UserError(f"{tool}: no such program here; --on {target} calls it, and --dry-run does without")


TOOL_VERBS = {"list": "List jobs", "logs": "Show a job's output", "stop": "Stop a job; its run can be resumed"}


@dataclass(frozen=True, kw_only=True)
class ToolArgs:
    """Arguments of `icl-jax launch list|logs|stop`."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Name of the job, for logs and stop."""
    on: Annotated[str, tyro.conf.arg(constructor=_ON)]
    """Where it was launched."""
    dry_run: bool = False
    """Print the command, and run nothing."""


def call_tool(verb: str, args: ToolArgs) -> int:
    """Call the target's own command for `verb`, one of TOOL_VERBS, and return its exit status. Raises UserError."""
    verbs = _BY_NAME[args.on].verbs
    if verbs is None:
        raise UserError(f"--on {args.on}: nothing to {verb}; its processes end with the command that started them")
    if verb != "list" and not re.fullmatch(r"[a-z][a-z0-9-]*", args.name):
        raise UserError(f"NAME = {args.name!r}: must be the name of a job, see icl-jax launch list --on {args.on}")
    command = verbs(args.name)[verb]
    if args.dry_run:
        print(f"$ {shlex.join(command)}")
        return 0
    _require(command[0], args.on)
    return subprocess.run(command, check=False).returncode
