"""One training session from a config to a finished or stopped run: what `icl-jax train` does."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
import xarray as xr
from rich.console import Console

from icl_jax import process
from icl_jax.config import Config, UserError, changed_fields
from icl_jax.config.checks import require
from icl_jax.data import Corpus
from icl_jax.display import StepsDisplay, say
from icl_jax.maths.head_scores import InductionHead, first_induction_head
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.params import n_params
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from icl_jax.rundir.files import reason
from icl_jax.rundir.record import PROBE_SCALARS
from icl_jax.train.branch import Branch
from icl_jax.train.environment import describe_start
from icl_jax.train.loop import Outcome, train
from icl_jax.train.may_start import check_vocabulary, may_start
from icl_jax.train.processes import all_or_none, is_first
from icl_jax.train.start import held_run
from icl_jax.train.stop import StopSignal
from icl_jax.train.watch.change_news import NOTHING_SEEN, Seen, spread_out
from icl_jax.train.watch.tracker import Tracker, make_tracker
from icl_jax.train.watch.wandb_run import MembersTable


def run(
    config: Config,
    path: str,
    console: Console,
    *,
    open_corpus: Callable[[Config, Console], Corpus],
    argv: list[str],
    branch: Branch | None = None,
    n_devices: int = 0,
    coordinator: str = "",
    n_processes: int = 1,
    process_id: int = 0,
) -> Outcome:
    """Make or resume the run directory `path` and train to the end of the config.

    `open_corpus` may show its progress on the console. `branch`: what a new run begins with. `coordinator` joins
    several processes first (`jax.distributed`). Raises UserError and NonFiniteLossError.
    """
    quiet_orbax()
    if coordinator:
        _join(coordinator, n_processes, process_id)
    devices = process.devices()
    if n_devices > len(devices):
        raise UserError(f"--devices = {n_devices}: must be at most {len(devices)}, the devices that there are")
    if n_devices and jax.process_count() == 1:
        devices = devices[:n_devices]
    if config.members:
        if jax.process_count() > 1:
            allowed = f"must be at least as many as devices, {len(devices)}, where there are several processes"
            require(len(config.members) >= len(devices), "members", len(config.members), allowed)
        devices = devices[: len(config.members)]
    n_sharing = 1 if config.members else len(devices)  # a member's batch is whole on its device
    config.train.rows_per_device(n_sharing)
    execution = resolve(config.model, devices[0].platform, config.train, n_sharing)
    console = console if is_first() else Console(quiet=True)

    tell = functools.partial(say, console)

    def open_here() -> Corpus:
        corpus = open_corpus(config, console)
        check_vocabulary(config, corpus)
        return corpus

    def start_tracker() -> Tracker:
        if is_first():
            changed = changed_fields(RunDir.open(path).config, config)
            run_dir.add_start({**describe_start(start_step, devices, argv, execution), "changed_fields": changed})
        tell(_headline(config, str(run_dir.path), devices, start_step, execution))
        known = seen(run_dir) if is_first() and start_step else NOTHING_SEEN
        return make_tracker(config, str(run_dir.path), run_dir.run_id, tell, is_first(), known)

    with _failures_explained():
        all_or_none(
            "cannot use this run directory", lambda: is_first() and may_start(path, config, jax.process_count())
        )
        corpus = all_or_none("cannot open the corpus", open_here)
        with StopSignal() as stop, held_run(path, config, corpus, branch) as run_dir:
            start_step = run_dir.last_state_step() or 0
            if start_step >= config.train.n_steps:
                tell(f"{run_dir.path}: already complete at step {start_step}")
                return Outcome(start_step, 0)
            tracker = all_or_none("cannot start", start_tracker)
            tell(tracker.description)
            exit_code = 1
            try:
                with StepsDisplay(console, config.train.n_steps, config.tokens_per_step, start_step) as display:
                    outcome = train(run_dir, corpus, devices, execution, stop=stop, progress=display, tracker=tracker)
                if config.members and not outcome.signum:
                    tracker.log_members(members_table(run_dir))
                # W&B waits less for a run that was stopped: a preempted machine is gone in seconds.
                exit_code = 128 + outcome.signum if outcome.signum else 0
            finally:
                tracker.finish(exit_code)
    if not outcome.signum:
        tell(f"{run_dir.path}: complete, {outcome.step} steps, {len(run_dir.manifest.read())} snapshots")
    return outcome


@contextlib.contextmanager
def _failures_explained() -> Iterator[None]:
    """Say in one line what JAX's errors mean that are no bugs: too little memory, or another process that is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            larger = "more devices, a larger train.accum_steps or train.fsdp, or a smaller train.batch_size"
            kind = jax.local_devices()[0].device_kind
            raise UserError(f"out of memory on {kind}: {reason(error)}; try {larger}") from error
        if jax.process_count() == 1:
            raise
        where = f"process {jax.process_index()} of {jax.process_count()}"
        why = "another process failed or is gone, and its message, if it left one, tells why"
        raise UserError(f"{where}: {why}; the same command on each resumes ({reason(error)})") from error


# Of a process that is gone without closing its connections, as with its machine. JAX waits for 100 s.
_HEARTBEAT_S = 40


def _join(coordinator: str, n_processes: int, process_id: int) -> None:
    try:
        if coordinator == "auto":
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_S)
        else:
            jax.distributed.initialize(coordinator, n_processes, process_id, heartbeat_timeout_seconds=_HEARTBEAT_S)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(f"--coordinator = {coordinator!r}: {reason[0][:200] if reason else 'cannot join'}") from error


def members_table(run: RunDir) -> MembersTable:
    """What each member has of its own, and how it ended: mean loss of the last step, live measures, where it failed."""
    record = run.load_record()
    ends = {"loss": record["loss"][-1].mean("position").values}
    ends |= {name: record[name][-1].values for name in PROBE_SCALARS if name in record}
    steps = np.isfinite(record["lr"].values).sum(axis=0)
    failed_at = [int(n) if n < record.sizes["step"] else None for n in steps]
    fields = run.config.member_fields
    rows = [
        [k, *(values[k] for values in fields.values()), *(float(values[k]) for values in ends.values()), failed_at[k]]
        for k in range(len(run.config.members))
    ]
    return MembersTable(["member", *fields, *ends, "failed at step"], rows)


def seen(run: RunDir) -> Seen:
    """What the record holds so far of heads and scores, for those who watch."""
    record = run.load_record()
    if run.config.members:  # as they are shown
        record = record[["lr", "icl_windowed"] if "icl_windowed" in record else ["lr"]].median("member")
    names = ("tokens", "lr", "probe_tokens", "icl_windowed")
    curves = (spread_out(record[name].values) if name in record else () for name in names)
    return Seen(seen_induction_head(record), *curves)


def seen_induction_head(record: xr.Dataset) -> InductionHead | None:
    """What the probes of a record have seen so far."""
    if "prefix_matching" not in record:
        return None
    return first_induction_head(record["probe_tokens"].values, record["prefix_matching"].values)


def _headline(config: Config, path: str, devices: list[jax.Device], start_step: int, execution: Execution) -> str:
    model = config.model
    parts = [
        f"resumes at step {start_step}" if start_step else "starts",
        f"{model.n_layers} layers, d_model {model.d_model}, {model.n_heads} heads, {n_params(model):,} parameters",
        config.data.source,
        f"{len(config.members)} members" if config.members else "",
        f"{config.train.n_steps * config.tokens_per_step:,} tokens",
        f"{len(devices)} x {devices[0].device_kind}",
        str(execution),
    ]
    if jax.process_count() > 1:
        parts.append(f"{jax.process_count()} processes")
    return f"{path}: {'; '.join(part for part in parts if part)}"
