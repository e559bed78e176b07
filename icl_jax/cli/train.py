"""`icl-jax train`: a config to a run directory."""

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from icl_jax import process
from icl_jax.cli.arguments import ConfigArgs
from icl_jax.config import Config, UserError
from icl_jax.data import Corpus, open_shown
from icl_jax.display import say
from icl_jax.telling import command
from icl_jax.train.may_start import check_vocabulary, may_start

if TYPE_CHECKING:
    from icl_jax.train.branch import Branch


@dataclass(frozen=True, kw_only=True)
class TrainArgs(ConfigArgs):
    """Arguments of `icl-jax train`."""

    run: str = ""
    """Run directory, a path or gs://BUCKET/...; an existing one is resumed. Default: runs/NAME-OF-CONFIG."""
    devices: int = 0
    """Devices of each process; 0: all, and on CPU as many as cores and the batch allow, or one with --coordinator."""
    coordinator: str = ""
    """HOST:PORT of process 0, for several processes where the cluster does not tell JAX by itself; "auto": it does."""
    processes: int = 1
    """Number of processes, with --coordinator."""
    process_id: int = 0
    """This process's number, with --coordinator."""
    sigterm_status: int = 0
    """Exit status after SIGTERM: not 0 where a scheduler restarts only what failed, such as 143."""


# More that JAX would make on one CPU: nobody has them, and making a million takes hours.
_MOST_CPU_DEVICES = 512


def run_path(args: TrainArgs) -> str:
    return args.run or str(Path("runs") / Path(args.config).stem)


def default_cpu_devices(config: Config, n_cores: int) -> int:
    """One device per core runs faster than one device with as many threads; the batch must divide evenly."""
    if config.members:
        return min(n_cores, len(config.members))
    n_rows = config.train.batch_size // config.train.accum_steps
    fitting = [n for n in range(1, n_cores + 1) if n_rows % n == 0 and n % config.train.fsdp == 0]
    return max(fitting, default=config.train.fsdp)


def _check(args: TrainArgs) -> None:
    if args.devices < 0:
        raise UserError(f"--devices = {args.devices}: must be 0 or more")
    if args.processes < 1:
        raise UserError(f"--processes = {args.processes}: must be 1 or more")
    if not 0 <= args.process_id < args.processes:
        raise UserError(f"--process-id = {args.process_id}: must be from 0 to --processes less 1, {args.processes - 1}")
    if not 0 <= args.sigterm_status <= 255:
        raise UserError(f"--sigterm-status = {args.sigterm_status}: must be from 0 to 255")
    if args.processes > 1 and not args.coordinator:
        raise UserError(f"--processes = {args.processes}: needs --coordinator HOST:PORT of process 0")
    if args.devices and not args.overrides.members:
        # Before JAX makes as many on CPU.
        args.overrides.train.rows_per_device(args.devices * args.processes)


def train(args: TrainArgs, console: Console, given: Sequence[str], branch: "Branch | None" = None) -> int:
    """Train, and return the exit status: 0 at the end, `sigterm_status` preempted by SIGTERM, 130 on SIGINT.

    given: the command line without `icl-jax`: the same one resumes. branch: what a new run begins with.
    """
    config = args.overrides
    _check(args)
    open_corpus: Callable[[Config, Console], Corpus] = open_shown
    if not args.coordinator:  # one of several processes that failed alone would leave the others waiting
        # Before JAX, which takes seconds: what cannot be used is refused at once.
        may_start(run_path(args), config)
        corpus = open_shown(config, console)
        check_vocabulary(config, corpus)
        for words in () if branch is None else branch.notes(config, corpus):
            say(console, words)

        def open_corpus(_config: Config, _console: Console) -> Corpus:
            return corpus

    n_cores = 1 if args.coordinator else process.cpu_count()
    process.configure_jax(min(args.devices or default_cpu_devices(config, n_cores), _MOST_CPU_DEVICES))
    from icl_jax.train import session  # after JAX is configured

    outcome = session.run(
        config,
        run_path(args),
        console,
        open_corpus=open_corpus,
        argv=sys.argv,
        branch=branch,
        n_devices=args.devices,
        coordinator=args.coordinator,
        n_processes=args.processes,
        process_id=args.process_id,
    )
    if outcome.signum:
        name = signal.Signals(outcome.signum).name
        again = command(["icl-jax", *given])
        say(console, f"{name}: state saved at step {outcome.step}; resume with: {again}")
    if outcome.signum == signal.SIGINT:
        return 130
    return args.sigterm_status if outcome.signum else 0
