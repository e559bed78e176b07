"""Measurements of snapshots that are taken, kept and counted; those of members from one reading of each snapshot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from icl_jax.analysis.finished_work import FinishedWork, work_key
from icl_jax.config import UserError
from icl_jax.measures.measurement import Context, Derived, Measurement, StackedParams, measure_all
from icl_jax.model.params import param_shapes
from icl_jax.read_ahead import ReadAhead
from icl_jax.rundir import RunDir, SnapshotEntry

Progress = Callable[[int, int, str], None]
"""Called with (measurements taken, to be taken in all, name of the latest); one measurement of one snapshot is one."""

# Bytes of parameters read at a time; two such batches are in memory, one being measured and one being read.
_BATCH_BYTES = 2**28
_MAX_BATCH = 16


@dataclass
class Count:
    """How much is done of how much."""

    progress: Progress | None
    done: int = 0
    total: int = 0

    def add(self, n: int, name: str) -> None:
        self.done += n
        if self.progress is not None:
            self.progress(self.done, self.total, name)


class Session:
    """The finished work of one run, or of one member."""

    def __init__(self, run: RunDir, context: Context, table: tuple[Measurement | Derived, ...], count: Count) -> None:
        self.run, self.context = run, context
        self._count = count
        self._table = [m for m in table if isinstance(m, Measurement)]
        self.works = {m.name: FinishedWork(run.path / "analysis_parts", m) for m in self._table}

    def key(self, measurement: Measurement, entry: SnapshotEntry) -> str:
        return work_key(measurement, self.context, entry.sha256)

    def lacking(
        self, measurements: list[Measurement], entries: list[SnapshotEntry]
    ) -> dict[int, tuple[SnapshotEntry, list[Measurement]]]:
        """Of each step that is not finished its entry, and what is to be taken; adds them to the count."""
        applicable = [m for m in measurements if m.why_not(self.context) is None]
        found = {}
        for entry in entries:
            if todo := [m for m in applicable if self.key(m, entry) not in self.works[m.name]]:
                found[entry.step] = entry, todo
                self._count.total += len(todo)
        return found

    def measure(self, lacking: list[tuple[SnapshotEntry, list[Measurement]]], params: StackedParams) -> None:
        """Take what several snapshots lack; `params` are theirs."""
        together: dict[tuple[int, ...], list[Measurement]] = {}
        for measurement in self._table:
            at = tuple(i for i, (_, todo) in enumerate(lacking) if measurement in todo)
            together.setdefault(at, []).append(measurement)
        together.pop((), None)
        for at, group in together.items():
            some = params if len(at) == len(lacking) else {name: value[list(at)] for name, value in params.items()}
            for measurement, answer in measure_all(tuple(group), self.context, some):
                self._keep(measurement, [lacking[i][0] for i in at], answer)

    def _keep(self, measurement: Measurement, entries: list[SnapshotEntry], answer: dict[str, np.ndarray]) -> None:
        expected = set(measurement.variables)
        if set(answer) != expected:
            raise ValueError(f"{measurement.name} filled {sorted(answer)}, not {sorted(expected)}")
        keys = [self.key(measurement, entry) for entry in entries]
        self.works[measurement.name].add(keys, {name: np.asarray(value) for name, value in answer.items()})
        self._count.add(len(entries), measurement.name)

    def forget_stale(self, entries: list[SnapshotEntry]) -> None:
        """Delete finished work on snapshots that the run no longer has."""
        for measurement in self._table:
            self.works[measurement.name].forget_all_but({self.key(measurement, entry) for entry in entries})


def take(
    source: RunDir,
    sessions: Sequence[Session],
    measurements: list[Measurement],
    entries: Sequence[list[SnapshotEntry]],
) -> None:
    """Measure what is not finished yet, reading snapshots in the background, each once for all sessions.

    entries: of each session. source: the run of the one session, or that of which the sessions are members.
    """
    lacking = [session.lacking(measurements, of) for session, of in zip(sessions, entries, strict=True)]
    needed = set().union(*lacking)
    batches = _batches([entry for entry in source.snapshots() if entry.step in needed])
    with ReadAhead((load_stacked(source, batch) for batch in batches), depth=1, name="icl_jax-snapshots") as ahead:
        for batch, params in zip(batches, ahead, strict=True):
            for session, of in zip(sessions, lacking, strict=True):
                at = [i for i, step in enumerate(batch) if step in of]
                if at:
                    session.measure([of[batch[i]] for i in at], _of_session(params, at, len(batch), source, session))


def _of_session(params: StackedParams, at: list[int], n: int, source: RunDir, session: Session) -> StackedParams:
    """The parameters of some snapshots of a batch, of the session's run or member."""
    if source.config.members:
        return {name: value[at, session.run.index] for name, value in params.items()}
    return params if len(at) == n else {name: value[at] for name, value in params.items()}


def _batches(entries: list[SnapshotEntry]) -> list[list[int]]:
    """Steps in batches of nearly equal size that fit in memory."""
    if not entries:
        return []
    largest = max(1, min(_MAX_BATCH, _BATCH_BYTES // max(entry.n_bytes for entry in entries)))
    n_batches = -(-len(entries) // largest)
    bounds = np.linspace(0, len(entries), n_batches + 1).round().astype(int)
    return [[entry.step for entry in entries[a:b]] for a, b in pairwise(bounds)]


def load_stacked(run: RunDir, steps: Sequence[int]) -> StackedParams:
    """Parameters of several snapshots, the snapshot axis in front, then that of members where there are any.

    Raises UserError if one is missing, damaged or does not have the shapes of the run's config.
    """
    n_members = (len(run.config.members),) if run.config.members else ()
    expected = {name: (*n_members, *shape) for name, shape in param_shapes(run.config.model).items()}
    loaded = [run.load_params(step) for step in steps]
    for step, params in zip(steps, loaded, strict=True):
        found = {name: array.shape for name, array in params.items()}
        if found != expected:
            odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))[0]
            what = f"{odd} has the shape {found.get(odd)}, but the config says {expected.get(odd)}"
            raise UserError(f"{run.root / 'snapshots' / str(step)}: {what}")
    if len(loaded) == 1:  # no second copy of a large snapshot
        return {name: loaded[0][name][None] for name in expected}
    return {name: np.stack([params[name] for params in loaded]) for name in expected}
