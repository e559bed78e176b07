"""`icl-jax VERB ...`: the verbs, and what becomes of errors."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import __version__, process
from icl_jax.cli.arguments import ConfigArgs, OutputError, parse, parse_with_config
from icl_jax.config import NonFiniteLossError, UserError
from icl_jax.display import say
from icl_jax.rundir.files import reason, storage_problem
from icl_jax.telling import one_line


def _train(args: Sequence[str], console: Console) -> int:
    """Train a config into a run directory, or resume one. Example: icl-jax train repeats-2l --train.n-steps 600"""
    from icl_jax.cli.train import TrainArgs, train

    parsed = parse_with_config(TrainArgs, args, prog="icl-jax train", description=_train.__doc__ or "")
    return train(parsed, console, ["train", *args])


def _branch(args: Sequence[str], console: Console) -> int:
    """Train on from a snapshot of a run, in a new one. Example: icl-jax branch runs/a --at 600 --run runs/b"""
    from icl_jax.cli.branch import BranchArgs, branch, config_of

    description = _branch.__doc__ or ""
    parsed = parse_with_config(
        BranchArgs, args, prog="icl-jax branch", description=description, load=config_of, first="RUN"
    )
    return branch(parsed, console, ["branch", *args])


def _import(args: Sequence[str], console: Console) -> int:
    """Make a run of others' checkpoints. Example: icl-jax import hf:EleutherAI/pythia-70m --run runs/pythia"""
    from icl_jax.cli.import_verb import ImportArgs, import_checkpoints

    parsed = parse(ImportArgs, args, prog="icl-jax import", description=_import.__doc__ or "")
    return import_checkpoints(parsed, console)


@dataclass(frozen=True, kw_only=True)
class _VerifyArgs:
    run: Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory."""


def _verify(args: Sequence[str], console: Console) -> int:
    """Check a run directory: hashes, record, snapshots, state. Example: icl-jax verify runs/repeats-2l"""
    parsed = parse(_VerifyArgs, args, prog="icl-jax verify", description=_verify.__doc__ or "")
    from icl_jax.cli.verify import verify

    return verify(parsed.run, console)


def _audit(args: Sequence[str], console: Console) -> int:
    """Look for damaged, swapped and repeated checkpoints. Example: icl-jax audit hf:EleutherAI/pythia-70m"""
    from icl_jax.cli.audit import AuditArgs, audit

    return audit(parse(AuditArgs, args, prog="icl-jax audit", description=_audit.__doc__ or ""), console)


def _analyze(args: Sequence[str], console: Console) -> int:
    """Take the papers' measurements over a run's snapshots. Example: icl-jax analyze runs/repeats-2l --show"""
    from icl_jax.cli.analyze import AnalyzeArgs, analyze

    return analyze(parse(AnalyzeArgs, args, prog="icl-jax analyze", description=_analyze.__doc__ or ""), console)


def _report(args: Sequence[str], console: Console) -> int:
    """Write one page of runs: curves, heads, verdicts. Example: icl-jax report runs/repeats-2l runs/repeats-1l"""
    from icl_jax.cli.report import ReportArgs, report

    return report(parse(ReportArgs, args, prog="icl-jax report", description=_report.__doc__ or ""), console)


def _probe(args: Sequence[str], console: Console) -> int:
    """Loss, predictions and heads at each token of a text. Example: icl-jax probe runs/repeats-2l "5 9 5 9" --top 3"""
    from icl_jax.cli.probe import ProbeArgs, probe

    return probe(parse(ProbeArgs, args, prog="icl-jax probe", description=_probe.__doc__ or ""), console)


def _behaviours(args: Sequence[str], console: Console) -> int:
    """Ask a run's model in words: names, sums, translation. Example: icl-jax behaviours runs/smollm2-135m"""
    from icl_jax.cli.behaviours import BehavioursArgs, behaviours

    return behaviours(
        parse(BehavioursArgs, args, prog="icl-jax behaviours", description=_behaviours.__doc__ or ""), console
    )


def _export(args: Sequence[str], console: Console) -> int:
    """Write a snapshot for another library. Example: icl-jax export runs/repeats-2l --to transformer-lens"""
    from icl_jax.cli.export import ExportArgs, export

    return export(parse(ExportArgs, args, prog="icl-jax export", description=_export.__doc__ or ""), console)


def _split(args: Sequence[str], console: Console) -> int:
    """Make a run of one member of many. Example: icl-jax split runs/seeds --member 3 --run runs/seed-3"""
    from icl_jax.cli.split import SplitArgs, split

    return split(parse(SplitArgs, args, prog="icl-jax split", description=_split.__doc__ or ""), console)


@dataclass(frozen=True, kw_only=True)
class _PrepareArgs(ConfigArgs):
    pass


@dataclass(frozen=True, kw_only=True)
class _ShowArgs(ConfigArgs):
    rows: int = 3
    """Rows to print."""
    held_out: bool = False
    """Print held-out rows instead of training rows."""


def _data(args: Sequence[str], console: Console) -> int:
    """Prepare a config's corpus, or show its rows. Example: icl-jax data show python-2l --rows 2"""
    verb, rest = (args[0], args[1:]) if args else ("", [])
    if verb in ("", "-h", "--help"):
        say(console, f"usage: icl-jax data prepare|show CONFIG ...\n\n{_data.__doc__}")
        return 0
    if verb not in ("prepare", "show"):
        raise UserError(f"data {verb}: no such verb; there are prepare and show")
    from icl_jax.cli import data

    if verb == "prepare":
        description = "Tokenise a config's corpus into the cache. Example: icl-jax data prepare python-2l"
        prepare = parse_with_config(_PrepareArgs, rest, prog="icl-jax data prepare", description=description)
        data.data_prepare(prepare.overrides, console)
    else:
        description = "Print decoded rows. Example: icl-jax data show python-2l --rows 2"
        show = parse_with_config(_ShowArgs, rest, prog="icl-jax data show", description=description)
        if show.rows < 1:
            raise UserError(f"--rows = {show.rows}: must be 1 or more")
        data.data_show(show.overrides, console, show.rows, show.held_out)
    return 0


def _reproduce(args: Sequence[str], console: Console) -> int:
    """Train, analyze and report a suite of runs; go on where it stopped. Example: icl-jax reproduce quick"""
    from icl_jax.cli.reproduce import ReproduceArgs, reproduce

    description = _reproduce.__doc__ or ""
    return reproduce(parse(ReproduceArgs, args, prog="icl-jax reproduce", description=description), console)


def _sweep(args: Sequence[str], console: Console) -> int:
    """Train a W&B sweep over fields of a config. Example: icl-jax sweep sweep.yaml repeats-2l --dry-run"""
    from icl_jax.cli.sweep import SweepArgs, sweep

    return sweep(parse(SweepArgs, args, prog="icl-jax sweep", description=_sweep.__doc__ or ""), console)


def _workspace(args: Sequence[str], console: Console) -> int:
    """Save a W&B workspace with the charts of a config's project. Example: icl-jax workspace repeats-2l"""
    from icl_jax.cli.workspace import WorkspaceArgs, workspace

    description = _workspace.__doc__ or ""
    return workspace(parse_with_config(WorkspaceArgs, args, prog="icl-jax workspace", description=description), console)


def _compile(args: Sequence[str], console: Console) -> int:
    """Compile a config's step for a TPU slice: memory, speed, cost. Example: icl-jax compile paper-attn-2l"""
    from icl_jax.cli.compile import CompileArgs, compile_configs

    description = _compile.__doc__ or ""
    return compile_configs(parse(CompileArgs, args, prog="icl-jax compile", description=description), console)


def _launch(args: Sequence[str], console: Console) -> int:
    """Train on a TPU slice or a cluster. Example: icl-jax launch paper-attn-2l --on slurm --processes 8 --dry-run"""
    from icl_jax.cli import launch

    description = _launch.__doc__ or ""
    if args and args[0] in launch.TOOL_VERBS:
        description = f"{launch.TOOL_VERBS[args[0]]}, by the target's own tool."
        tool_args = parse(launch.ToolArgs, args[1:], prog=f"icl-jax launch {args[0]}", description=description)
        return launch.call_tool(args[0], tool_args)
    description += " Jobs that run: icl-jax launch list|logs|stop --on TARGET [NAME]"
    return launch.launch(
        parse_with_config(launch.LaunchArgs, args, prog="icl-jax launch", description=description), console
    )


_VERBS: dict[str, Callable[[Sequence[str], Console], int]] = {
    "train": _train,
    "branch": _branch,
    "analyze": _analyze,
    "report": _report,
    "probe": _probe,
    "behaviours": _behaviours,
    "export": _export,
    "import": _import,
    "verify": _verify,
    "audit": _audit,
    "split": _split,
    "data": _data,
    "reproduce": _reproduce,
    "sweep": _sweep,
    "workspace": _workspace,
    "compile": _compile,
    "launch": _launch,
}


_LASTING = [
    [verb]
    for verb in (
        "train",
        "branch",
        "split",
        "analyze",
        "report",
        "behaviours",
        "export",
        "reproduce",
        "sweep",
        "launch",
    )
]
"""Verbs whose results are in files: what they say may be lost."""
_PASSING_ON = {"reproduce", "sweep", "launch"}
"""Verbs that pass Ctrl-C on to the commands that they have started, and wait for them to save their states."""


def _help(console: Console) -> None:
    lines = ["usage: icl-jax VERB ... [--debug]", "", "verbs:"]
    lines += [f"  {name:<10} {function.__doc__ or ''}".rstrip() for name, function in _VERBS.items()]
    lines += ["", "icl-jax VERB --help tells more. Errors are one line; --debug shows where they came from."]
    say(console, "\n".join(lines))


class _Console(Console):
    """Throws away what nobody reads, or nothing holds: a closed pipe or a full disk must not end a training run."""

    def __init__(self) -> None:
        super().__init__()
        self.is_lost = False
        """Whether output was lost that somebody waits for."""

    def on_broken_pipe(self) -> None:
        self._give_up()

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            self.is_lost = True
            self._give_up()
            _tell_error(f"cannot write to standard output: {reason(error)}: going on without")

    def _give_up(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tell_error(text: str) -> None:
    """A line to standard error, if it takes one."""
    with contextlib.suppress(OSError):
        print(f"icl-jax: {one_line(text)}", file=sys.stderr, flush=True)


def _escape_what_terminals_lack() -> None:
    """Characters that the encoding of a terminal does not have are escaped; Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _gone_folder() -> str | None:
    """What is wrong where the folder that the command is run in has been removed."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the folder that this runs in has been removed: change to another"
    return None


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit status.

    0; 1 where `compile` finds that something does not fit, `verify` or `audit` a fault, or the output could not be
    written; 2 for a user's mistake; 3 for a loss that is not finite.
    """
    args = [arg for arg in argv if arg != "--debug"]
    is_debug = len(args) < len(argv)
    _escape_what_terminals_lack()
    console = _Console()
    try:
        status = _run_verb(args, console)
        return 1 if status == 0 and console.is_lost and args[:1] not in _LASTING else status
    except (UserError, NonFiniteLossError) as error:
        if is_debug:
            traceback.print_exc()
        _tell_error(str(error))
        return 3 if isinstance(error, NonFiniteLossError) else 2
    except MemoryError as error:
        if is_debug:
            traceback.print_exc()
        _tell_error(": ".join(filter(None, ["out of memory", str(error)])))
        return 2
    except OSError as error:
        problem = storage_problem(error) or _gone_folder()
        if problem is None:
            raise
        if is_debug:
            traceback.print_exc()
        _tell_error(problem)
        return 2
    except KeyboardInterrupt:
        process.interrupts.is_told = True
        _tell_error("interrupted")
        return 130


def _run_verb(args: Sequence[str], console: Console) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        _help(console)
        return 0
    if args[0] == "--version":
        say(console, f"icl-jax {__version__}")
        return 0
    if args[0] not in _VERBS:
        raise UserError(f"{args[0]}: no such verb; there are {', '.join(_VERBS)}")
    return _VERBS[args[0]](args[1:], console)


def main() -> None:
    process.keep_freed_memory()
    process.one_blas_thread()
    process.quiet_libraries()
    if not _PASSING_ON & set(sys.argv[1:2]):
        process.interrupts.watch()
    try:
        status = run(sys.argv[1:])
    except BrokenPipeError:  # tyro prints its help by itself, to `| head` too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except OutputError as error:
        status = 1
        _tell_error(str(error))
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception:  # a bug
        traceback.print_exc()
        status = 1
    process.end(status)
