"""Weights & Biases behind one small interface. The record on disk is the truth; this is a view of it.

W&B runs in a thread of its own: a point costs the training loop some microseconds however slow W&B is, and
whatever W&B raises is raised there. A failure is one warning, after which training goes on without tracking.
It is not :class:`~icl_jax.train.writer.Writer`, whose jobs hold training up while the disk is slow, end it where they
fail and are waited for: a W&B that hangs must do none of the three.

Points carry the axis ``tokens`` and no explicit W&B step: W&B drops points whose step goes backwards, as the steps
do that a resumed run takes again after a crash. Such points are sent twice and are equal.
"""

import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol, SupportsFloat, runtime_checkable

import numpy as np

from icl_jax.config import Config
from icl_jax.config.tables import to_tables
from icl_jax.maths.icl_score import SAYS_NOTHING
from icl_jax.rundir.files import is_bucket
from icl_jax.rundir.record import ProbeResult
from icl_jax.train.watch.change_news import NOTHING_SEEN, ChangeNews, Seen
from icl_jax.train.watch.wandb_run import (
    FINISH_TIMEOUT_S,
    INIT_TIMEOUT_S,
    InductionNews,
    MembersTable,
    Point,
    Snapshot,
    auto_mode,
    history_row,
    is_logged_in,
    log_artifact,
    log_members,
    open_run,
    server_address,
    tear_down,
)  # fmt: skip

START_GRACE_S = 5.0
"""Time beyond that in which W&B can say itself that it gave up."""
INTERRUPTED_FINISH_TIMEOUT_S = 8.0
"""The same for a run that ends with an exit code other than 0: after SIGTERM the machine may be gone in seconds."""
SILENCE_S = 2.0
"""Longest that somebody waits for a server and is not told so."""
MAX_WAITING_POINTS = 4096
"""Points that may wait for W&B before it counts as stuck."""

NOTHING: Mapping[str, float] = {}


@runtime_checkable
class Tracker(Protocol):
    """Where a run's numbers are shown while it trains."""

    description: str
    """One line that says where the run can be watched, or why it cannot."""

    def log_step(self, step: int, tokens: int, scalars: Mapping[str, SupportsFloat]) -> None:
        """Numbers of one training step: loss, lr, grad_norm, tokens_per_s."""

    def log_probe(self, tokens: int, result: ProbeResult, more: Mapping[str, float] = NOTHING) -> None:
        """Live measures, and other numbers of the same step."""

    def log_members(self, table: MembersTable) -> None:
        """What became of each member, once all have ended."""

    def log_snapshot(self, step: int, tokens: int, path: str) -> None:
        """A snapshot that is complete on disk. May be called from any thread."""

    def finish(self, exit_code: int) -> None:
        """Send what is waiting and close the run. Later calls of any method do nothing."""


class NullTracker:
    """Tracks nothing."""

    def __init__(self, description: str) -> None:
        self.description = description

    def log_step(self, *_args: object, **_scalars: object) -> None:
        """Do nothing."""

    def log_probe(self, tokens: int, result: ProbeResult, more: Mapping[str, float] = NOTHING) -> None:
        """Do nothing."""

    def log_members(self, table: MembersTable) -> None:
        """Do nothing."""

    def log_snapshot(self, step: int, tokens: int, path: str) -> None:
        """Do nothing."""

    def finish(self, exit_code: int) -> None:
        """Do nothing."""


class WandbTracker:
    """Sends points to Weights & Biases. Use :func:`make_tracker`.

    ``init`` holds the arguments of ``wandb.init``. ``temporary_dir`` is removed once everything in it is uploaded.
    ``seen``: what the record of a resumed run holds; ``keeps_snapshots``: as artifacts.
    """

    def __init__(
        self,
        init: dict[str, Any],
        warn: Callable[[str], None],
        temporary_dir: str | None = None,
        seen: Seen = NOTHING_SEEN,
        keeps_snapshots: bool = False,
    ) -> None:
        self.description = "W&B: starting"
        self._init = init
        self._warn = warn
        self._temporary_dir = temporary_dir
        self._seen = seen
        self._keeps_snapshots = keeps_snapshots
        self._server = server_address() if init.get("mode") == "online" else None
        # An int is the exit code.
        self._waiting: queue.Queue[Point | Snapshot | MembersTable | int] = queue.Queue(MAX_WAITING_POINTS)
        self._is_started = threading.Event()
        self._failure: str | None = None
        self._is_off = False
        self._sync_dir = ""
        # A daemon: a W&B that hangs must not keep the program alive.
        self._thread = threading.Thread(target=self._work, name="icl_jax-wandb", daemon=True)

    def start(self) -> bool:
        """Start the W&B run; False, after a warning, if it failed."""
        self._thread.start()
        if not self._waits(self._is_started.wait, INIT_TIMEOUT_S + START_GRACE_S, "training goes on without it"):
            self._failure = f"no answer in {INIT_TIMEOUT_S + START_GRACE_S:.0f} s"
            self._waiting.put(1)  # should it start after all, it ends at once
        if self._failure is not None:
            self._turn_off()
        return not self._is_off

    def log_step(self, step: int, tokens: int, scalars: Mapping[str, SupportsFloat]) -> None:
        self._send(Point({"tokens": tokens, "step": step, **scalars}))

    def log_members(self, table: MembersTable) -> None:
        self._send(table)

    def log_probe(self, tokens: int, result: ProbeResult, more: Mapping[str, float] = NOTHING) -> None:
        row: dict[str, SupportsFloat] = {
            "tokens": tokens,
            "step": result.step,
            "icl_windowed": result.icl_windowed,
            "icl_sem": result.icl_sem,
        }
        if not result.icl_score_sem > SAYS_NOTHING:
            row |= {"icl_score": result.icl_score, "icl_score_sem": result.icl_score_sem}
        for name in ("prefix_matching", "previous_token"):
            score_NH = getattr(result, name)
            if score_NH.size:
                row[f"{name}_max"] = score_NH.max()
            for (layer, head), score in np.ndenumerate(score_NH):
                row[f"{name}/L{layer}H{head}"] = score
        row |= more
        self._send(Point(row, np.array(result.held_out_loss), np.array(result.prefix_matching)))

    def log_snapshot(self, step: int, tokens: int, path: str) -> None:
        # The writer's thread: whether it failed is for the loop's next call to say.
        if self._keeps_snapshots and not self._is_off and self._failure is None:
            self._put(Snapshot(step, tokens, path))

    def finish(self, exit_code: int) -> None:
        self._send(exit_code)
        if self._is_off:
            return
        most_s = FINISH_TIMEOUT_S if exit_code == 0 else INTERRUPTED_FINISH_TIMEOUT_S
        self._waits(self._ended, most_s, "wandb sync sends the rest later")
        if self._failure is not None:
            self._turn_off()
            return
        self._is_off = True
        if self._thread.is_alive():
            self._warn(f"W&B has not taken everything; send the rest with: wandb sync {self._sync_dir}")
        elif self._temporary_dir is not None and self._init["mode"] == "online":
            shutil.rmtree(self._temporary_dir, ignore_errors=True)

    def _ended(self, most_s: float) -> bool:
        self._thread.join(most_s)
        return not self._thread.is_alive()

    def _waits(self, wait: Callable[[float], bool], most_s: float, otherwise: str) -> bool:
        """What `wait` answers within `most_s`; of a server that is slow to answer the user is told."""
        if self._server is None or most_s <= SILENCE_S:
            return wait(most_s)
        if wait(SILENCE_S):
            return True
        self._warn(f"W&B: waiting for {self._server}, {most_s:.0f} s at most; then {otherwise}")
        return wait(most_s - SILENCE_S)

    def _send(self, item: Point | MembersTable | int) -> None:
        if self._is_off:
            return
        if self._failure is None:
            self._put(item)
        if self._failure is not None:
            self._turn_off()

    def _put(self, item: Point | Snapshot | MembersTable | int) -> None:
        try:
            self._waiting.put_nowait(item)
        except queue.Full:
            self._failure = f"{MAX_WAITING_POINTS} points are waiting to be sent"

    def _turn_off(self) -> None:
        self._is_off = True
        self.description = f"W&B: off ({self._failure})"
        self._warn(f"W&B failed, training goes on without it: {self._failure}")

    def _work(self) -> None:
        try:
            run = open_run(self._init)
            self._sync_dir = os.path.dirname(run.dir)
            self.description = f"W&B: offline, {self._sync_dir}" if run.offline else f"W&B: online, {run.url}"
            self._is_started.set()
            heads, changes = InductionNews(run, self._seen.head), ChangeNews(run, self._seen)
            while not isinstance(item := self._waiting.get(), int):
                if isinstance(item, Point):
                    run.log(history_row(item))
                    heads.look(item)
                    row = item.row
                    if "lr" in row:
                        changes.add_step(float(row["tokens"]), float(row["lr"]))
                    if "icl_windowed" in row:
                        changes.add_probe(*(float(row[name]) for name in ("tokens", "icl_windowed", "icl_sem")))
                elif isinstance(item, Snapshot):
                    log_artifact(run, item)
                else:
                    log_members(run, item)
            changes.finish()
            run.finish(exit_code=item)
        except BaseException as error:  # in this thread, no KeyboardInterrupt nor anything of ours can be raised
            lines = str(error).strip().splitlines() or [""]
            self._failure = f"{type(error).__name__}: {lines[0]}".rstrip(": ")
            self._is_started.set()
            tear_down()


def make_tracker(
    config: Config,
    run_path: str,
    run_id: str,
    warn: Callable[[str], None],
    is_writer: bool = True,
    seen: Seen = NOTHING_SEEN,
) -> Tracker:
    """Start tracking a run as ``config.tracker`` asks; never raises for a W&B that does not work.

    ``run_id`` is kept by the run directory: with the same id, W&B continues the same run. Only the writer process
    tracks. ``warn`` takes one line, always in the thread that calls the tracker: once in its life what has failed, and
    before each wait for a server that does not answer that it waits.
    ``seen``: what the record of a resumed run holds already, so that nobody is told twice.
    """
    if not is_writer:
        return NullTracker("W&B: tracked by process 0")
    mode: str = config.tracker.wandb
    try:
        if mode == "auto":
            mode, reason = auto_mode()
            if mode == "disabled":
                return NullTracker(f"W&B: disabled ({reason})")
        elif mode == "online" and not is_logged_in():
            # wandb.init would ask for a key on the terminal, unseen.
            raise RuntimeError("not logged in: run `wandb login` or set WANDB_API_KEY")
    except Exception as error:
        warn(f"W&B failed, training goes on without it: {error}")
        return NullTracker(f"W&B: off ({error})")
    if mode == "disabled":
        return NullTracker("W&B: disabled")

    is_local = not is_bucket(run_path)
    temporary_dir = None if is_local else tempfile.mkdtemp(prefix="icl_jax-wandb-")
    init = {
        "mode": mode,
        "id": run_id,
        "dir": temporary_dir or run_path,
        "name": os.path.basename(os.path.abspath(run_path) if is_local else run_path.rstrip("/")),
        "project": config.tracker.project,
        "entity": config.tracker.entity or None,
        "group": config.tracker.group or None,
        "job_type": config.tracker.job_type or None,
        "config": to_tables(config),
    }
    tracker = WandbTracker(init, warn, temporary_dir, seen, config.tracker.artifacts)
    if tracker.start():
        return tracker
    if temporary_dir is not None:
        shutil.rmtree(temporary_dir, ignore_errors=True)
    return NullTracker(tracker.description)
