"""The training loop: dispatch steps, hand what they record to the writer, stop and resume at any step."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from icl_jax.config import Config, NonFiniteLossError, UserError
from icl_jax.data import Corpus, each_corpus, read_batches
from icl_jax.data.batches import read_own_batches
from icl_jax.display import StepsDisplay
from icl_jax.maths.icl_score import SAYS_NOTHING
from icl_jax.model.execution import Execution
from icl_jax.read_ahead import ReadAhead
from icl_jax.rundir import RunDir, probe_steps, snapshot_steps
from icl_jax.rundir.record import ProbeResult
from icl_jax.train.failures import Failures, probe_spread, spread, typical, typical_probe
from icl_jax.train.interventions import Interventions
from icl_jax.train.members import MemberStep
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.probes import make_probe_fn
from icl_jax.train.processes import from_all, is_first
from icl_jax.train.recorder import Recorder
from icl_jax.train.state_arrays import state_from_arrays, state_to_arrays
from icl_jax.train.step import TrainState
from icl_jax.train.stop import StopSignal
from icl_jax.train.watch.tracker import Tracker
from icl_jax.train.writer import Writer

# Processes agree on stopping and on saving the state every so many steps; a single process looks at every step.
_AGREE_EVERY = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended: at which step, and by which signal if it was stopped."""

    step: int
    signum: int


def train(
    run: RunDir,
    corpus: Corpus,
    devices: list[jax.Device],
    execution: Execution | None = None,
    *,
    stop: StopSignal,
    progress: StepsDisplay,
    tracker: Tracker,
) -> Outcome:
    """Train from the run directory's last state (or from step 0) to the end of its config.

    The directory must already be cut back to that state. `execution`: None resolves it. Raises NonFiniteLossError, and
    UserError if the directory cannot be written. Equal inputs give equal bits, however often the run is stopped and
    resumed.
    """
    config = run.config
    saved_step = run.last_state_step()
    start_step = saved_step or 0
    if start_step == config.train.n_steps:
        return Outcome(start_step, 0)
    parallel = (MemberStep if config.members else ParallelStep)(config, devices, execution)
    # A branch begins with a state of step 0, another run without one.
    state = parallel.init_state() if saved_step is None else load_state(run, saved_step, parallel)
    probe_fn = make_probe_fn(config, corpus, parallel.local_devices)
    interventions = Interventions(config, run.load_record() if config.intervene else None)
    with Writer() as writer, local_batches(config, corpus, start_step) as batches:
        keeper = _Keeper(run, parallel, writer, progress, tracker, stop)
        try:
            for step in range(start_step, config.train.n_steps + 1):
                # The last step ends the run by itself; its state is saved after its snapshot and probe, not before.
                is_last = step == config.train.n_steps
                signum, save_now = (0, False) if is_last else keeper.agree(step, stop.signum)
                if signum or save_now:
                    keeper.save_state(step, state)
                if signum:
                    return Outcome(step, signum)
                if step in keeper.snapshot_steps:
                    keeper.save_snapshot(step, state.params)
                if step in keeper.probe_steps:
                    interventions.see(step, keeper.probe(step, state.params, probe_fn).prefix_matching)
                if not is_last:
                    moment = interventions.at(step)
                    state, metrics = parallel.under(moment, interventions)(state, parallel.put_rows(next(batches)))
                    keeper.recorder.add(step, metrics, moment.are_on)
            keeper.save_state(config.train.n_steps, state)
        except NonFiniteLossError as error:
            keeper.recorder.flush()
            writer.wait()
            raise NonFiniteLossError(error.step, f"{error.what}; {last_good_snapshot(run, error.step)}") from None
    return Outcome(config.train.n_steps, 0)


def load_state(run: RunDir, step: int, parallel: ParallelStep) -> TrainState:
    """A saved state over the devices, each process its shards. Raises UserError that says what to do without it."""
    like = parallel.state_like
    try:
        arrays = run.load_state_sharded(step, state_to_arrays(like), parallel.checksums)
        return parallel.from_saved(state_from_arrays(arrays, like))
    except UserError as error:
        raise UserError(f"{error}; without this folder the run resumes from the state before it") from None


def last_good_snapshot(run: RunDir, bad_step: int) -> str:
    """In words, for the message of a run that went wrong: parameters that gave a finite loss."""
    steps = [entry.step for entry in run.manifest.read() if entry.step < bad_step]
    return f"the last good snapshot is step {steps[-1]}" if steps else "no snapshot was saved before"


def local_batches(config: Config, corpus: Corpus, start_step: int) -> ReadAhead[np.ndarray]:
    """This process's share of the rows of each step: a slice of a global batch that all processes know.

    Where members have rows of their own, all of them, the axis of `Config.row_seeds` in front.
    """
    corpora = each_corpus(corpus)
    if len(corpora) > 1:
        return read_own_batches(corpora, config.row_seeds, batch_size=config.train.batch_size, start_step=start_step)
    n_local = config.train.batch_size // (1 if config.members else jax.process_count())
    first = 0 if config.members else jax.process_index() * n_local
    share = slice(first, first + n_local)
    return read_batches(
        corpus, seed=config.data.seed, batch_size=config.train.batch_size, start_step=start_step, local=share
    )


class _Keeper:
    """What the loop does besides stepping. Only process 0 writes; what is collective is done by all."""

    def __init__(
        self,
        run: RunDir,
        parallel: ParallelStep,
        writer: Writer,
        progress: StepsDisplay,
        tracker: Tracker,
        stop: StopSignal,
    ) -> None:
        config = run.config
        self.run, self.parallel, self.writer, self.progress, self.tracker = run, parallel, writer, progress, tracker
        self.stop = stop
        self.snapshot_steps = frozenset(snapshot_steps(config))
        self.probe_steps = frozenset(probe_steps(config))
        self.is_writer = is_first()
        self.record = run.open_record() if self.is_writer else None
        self.failures: Failures | None = None
        if config.members:
            self.failures = Failures(len(config.members), progress.message, run.load_record())
        self.recorder = Recorder(
            self._write_block,
            self._seen,
            platform=parallel.platform,
            flush_every_s=config.train.flush_every_s,
            failures=self.failures,
        )
        self._icl: tuple[float, float] | None = None
        self._last_state = time.monotonic()
        self._saving: Future[None] | None = None

    def agree(self, step: int, signum: int) -> tuple[int, bool]:
        """The signal to stop for (0: none) and whether the state is due, the same on every process."""
        is_due = time.monotonic() - self._last_state >= self.run.config.snapshots.state_every_s
        if jax.process_count() == 1:
            return signum, is_due
        if step % _AGREE_EVERY:
            return 0, False
        votes = from_all(np.array([signum, is_due], np.int32))
        return int(votes[:, 0].max()), bool(votes[0, 1])

    def save_snapshot(self, step: int, params: Any) -> None:
        self._check(step, [params])
        arrays = self.parallel.to_first_host(params)
        if self.is_writer:
            failed = frozenset() if self.failures is None else frozenset(self.failures.failed)
            self.writer.submit(self._write_snapshot, step, arrays, failed)
        self.recorder.pause()

    def _write_snapshot(self, step: int, arrays: Any, failed: frozenset[int]) -> None:
        self.run.save_snapshot(step, arrays, failed=failed)
        path = self.run.path / "snapshots" / str(step)
        self.tracker.log_snapshot(step, step * self.run.config.tokens_per_step, str(path))

    def save_state(self, step: int, state: TrainState) -> None:
        self._check(step, [state.params, state.opt_state])
        self.recorder.flush()
        if self._saving is not None:
            self._saving.exception()  # waits; one state at a time is in memory and on its way
        arrays = state_to_arrays(self.parallel.over_all_devices(state))
        # In the background it goes behind the record and the snapshots before it: they are on disk when it appears.
        earlier = self.writer.submit(lambda: None)
        with self.writer.explained():
            finish = self.run.begin_state(step, arrays, self.parallel.checksums(arrays), earlier.result)
        # After a failure too: Orbax must not write on into a run that is resumed.
        self._saving = self.writer.submit(finish, also_after_failure=True)
        self._last_state = time.monotonic()
        self.recorder.pause()

    def probe(self, step: int, params: Any, probe_fn: Callable[[int, Any], ProbeResult]) -> ProbeResult:
        self.recorder.settle()
        if self.failures is None:
            result = shown = probe_fn(step, self.parallel.replicate(params))
            more: dict[str, float] = {}
        else:
            result = self.failures.judge_probe(probe_fn(step, params))
            shown, more = typical_probe(result), probe_spread(result)
        # Over windows: the single positions of the other are noise on few rows.
        self._icl = None if shown.icl_sem > SAYS_NOTHING else (shown.icl_windowed, shown.icl_sem)
        if self.record is not None:
            self.writer.submit(self.record.write_probe, result)
        self.tracker.log_probe(step * self.run.config.tokens_per_step, shown, more)
        self.recorder.pause()
        return result

    def _check(self, step: int, trees: list[Any]) -> None:
        """Wait until every step before is known to be good, and see that the parameters themselves are."""
        self.recorder.settle()
        is_finite = self.parallel.finite_members(trees)
        if self.failures is not None:
            self.failures.check(step, is_finite)
        elif not is_finite.all():
            raise NonFiniteLossError(step, "the parameters are not finite")

    def _write_block(self, block: Any) -> None:
        if self.record is not None:
            self.writer.submit(self.record.write_steps, block)

    def _seen(self, step: int, numbers: dict[str, Any], step_s: float) -> None:
        self.stop.begin()
        shown = {name: typical(values) for name, values in numbers.items()}
        self.progress.update(step + 1, shown["loss"], self._icl)
        if step % self.run.config.tracker.every_steps == 0:
            tokens_per_step = self.run.config.tokens_per_step
            scalars = shown | {"tokens_per_s": tokens_per_step * (len(self.run.config.members) or 1) / step_s}
            if self.failures is not None:
                scalars |= spread({name: numbers[name] for name in ("loss", "grad_norm")})
            self.tracker.log_step(step, step * tokens_per_step, scalars)
