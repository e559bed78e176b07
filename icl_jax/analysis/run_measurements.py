"""Every measurement over every snapshot of a run, into RUN/analysis.zarr."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from icl_jax.analysis.choose_snapshots import choose_entries, choose_few
from icl_jax.analysis.dataset import build_dataset, note_asked, save_dataset
from icl_jax.analysis.finished_work import FinishedWork, work_key
from icl_jax.analysis.recorded import recorded_of
from icl_jax.config import UserError
from icl_jax.measures.measurement import Context, Derived, Measurement, StackedParams, measure_all
from icl_jax.measures.table import TABLE
from icl_jax.model.params import param_shapes
from icl_jax.read_ahead import ReadAhead
from icl_jax.rundir import RunDir, SnapshotEntry

Progress = Callable[[int, int, str], None]
"""Called with (measurements taken, to be taken in all, name of the latest); one measurement of one snapshot is one."""

# Bytes of parameters read at a time; two such batches are in memory, one being measured and one being read.
_BATCH_BYTES = 2**28
_MAX_BATCH = 16
# Held-out tokens that losses are measured on: 256 rows of 256. More rows cost time, not memory.
_TOKENS = 2**16
_MIN_ROWS = 32
# Where `selected` snapshots come from.
_WINDOW = "phase_change"


def analyze(
    run: RunDir,
    *,
    only: Sequence[str] | None = None,
    snapshots: int | Sequence[int] | None = None,
    n_rows: int | None = None,
    progress: Progress | None = None,
    table: tuple[Measurement | Derived, ...] = TABLE,
) -> xr.Dataset:
    """Take the measurements that the run lacks, write RUN/analysis.zarr and return it.

    `only`: names of measurements to take, what they need is taken too. `snapshots`: so many, or these steps; default
    all. `n_rows`: held-out rows; default 65,536 tokens' worth. A killed analysis goes on where it was. The dataset
    holds what has been taken on all chosen snapshots, now or before; its attribute `absent` (JSON) says why the rest is
    not there. Raises UserError for a name or step that does not exist, a run without snapshots or held-out
    rows, and one with members, which are analyzed one by one.
    """
    entries = run.one().snapshots()
    chosen = choose_entries(entries, snapshots)
    wanted = with_needs(only, table)
    context = make_context(run, n_rows)
    if only is None:
        wanted -= {m.name for m in table if isinstance(m, Measurement) and m.too_much(context)}
    session = _Session(run, context, table, progress)
    everywhere = [m for m in table if isinstance(m, Measurement) and not m.on_few]
    session.take([m for m in everywhere if m.name in wanted], chosen)
    on_few = [m for m in table if isinstance(m, Measurement) and m.on_few]
    # Where any are on few snapshots, the window comes first and all the rest once those are taken.
    names = {entry.name for entry in table}
    first = with_needs([_WINDOW] if _WINDOW in names else [], table) if on_few else names
    part = tuple(entry for entry in table if entry.name in first)
    dataset = build_dataset(run, context, part, session.works, chosen, [], wanted)
    if on_few:
        few = [chosen[i] for i in choose_few(dataset["tokens"].values, _window(dataset))]
        session.take([m for m in on_few if m.name in wanted], few)
        dataset = build_dataset(run, context, table, session.works, chosen, few, wanted)
    dataset = note_asked(dataset, entries, snapshots)
    save_dataset(dataset, run.path / "analysis.zarr")
    session.forget_stale(entries)
    return dataset


def make_context(run: RunDir, n_rows: int | None = None) -> Context:
    """The rows and tokens of a run that its measurements share. Raises UserError if the run holds none."""
    config, held_out = run.config, run.load_held_out()
    if n_rows is not None and n_rows < 1:
        raise UserError(f"--rows = {n_rows}: must be 1 or more")
    n_rows = n_rows or max(_MIN_ROWS, _TOKENS // config.model.n_ctx)
    return Context(
        config, held_out.rows[:n_rows], held_out.candidates, held_out.bos_id, config.data.seed,
        held_out.bigram_counts, held_out.label_names, None if held_out.labels is None else held_out.labels[:n_rows],
        None if held_out.chains is None else held_out.chains[:n_rows], recorded_of(run),
    )  # fmt: skip


def with_needs(only: Sequence[str] | None, table: tuple[Measurement | Derived, ...]) -> set[str]:
    """Names that were asked for, and what they need."""
    by_name = {entry.name: entry for entry in table}
    if only is None:
        return set(by_name)
    owner = {variable: entry.name for entry in table for variable in entry.variables}
    wanted: set[str] = set()
    waiting = list(only)
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise UserError(f"--only = {name!r}: no such measurement; there are {', '.join(by_name)}")
        if name in wanted:
            continue
        wanted.add(name)
        entry = by_name[name]
        if isinstance(entry, Derived):
            waiting += [owner[variable] for variable in entry.needs if variable in owner]
        elif entry.on_few and _WINDOW in by_name:
            waiting.append(_WINDOW)
    return wanted


def _window(dataset: xr.Dataset) -> tuple[int, int] | None:
    """Indexes of the snapshots before and after the phase change, if they are known."""
    if "step_before" not in dataset:
        return None
    steps = list(dataset["snapshot"].values)
    return steps.index(int(dataset["step_before"])), steps.index(int(dataset["step_after"]))


class _Session:
    """Takes measurements and keeps count."""

    def __init__(
        self, run: RunDir, context: Context, table: tuple[Measurement | Derived, ...], progress: Progress | None
    ) -> None:
        self._run, self._context, self._progress = run, context, progress
        self._folder = run.path / "analysis_parts"
        self._table = [m for m in table if isinstance(m, Measurement)]
        self.works = {m.name: FinishedWork(self._folder, m) for m in self._table}
        self._done = self._total = 0

    def key(self, measurement: Measurement, entry: SnapshotEntry) -> str:
        return work_key(measurement, self._context, entry.sha256)

    def take(self, measurements: list[Measurement], entries: list[SnapshotEntry]) -> None:
        """Measure what is not finished yet, reading snapshots in the background."""
        applicable = [m for m in measurements if m.why_not(self._context) is None]
        missing = {m.name: [e for e in entries if self.key(m, e) not in self.works[m.name]] for m in applicable}
        self._total += sum(len(todo) for todo in missing.values())
        needed = [e for e in entries if any(e in todo for todo in missing.values())]
        batches = _batches(needed)
        stacked = (load_stacked(self._run, [entry.step for entry in batch]) for batch in batches)
        with ReadAhead(stacked, depth=1, name="icl_jax-snapshots") as ahead:
            for batch, params in zip(batches, ahead, strict=True):
                together: dict[tuple[int, ...], list[Measurement]] = {}
                for measurement in applicable:
                    todo = tuple(i for i, entry in enumerate(batch) if entry in missing[measurement.name])
                    together.setdefault(todo, []).append(measurement)
                together.pop((), None)
                for todo, group in together.items():
                    some = _pick(params, list(todo), len(batch))
                    for measurement, answer in measure_all(tuple(group), self._context, some):
                        self._keep(measurement, [batch[i] for i in todo], answer)

    def _keep(self, measurement: Measurement, entries: list[SnapshotEntry], answer: dict[str, np.ndarray]) -> None:
        expected = set(measurement.variables)
        if set(answer) != expected:
            raise ValueError(f"{measurement.name} filled {sorted(answer)}, not {sorted(expected)}")
        keys = [self.key(measurement, entry) for entry in entries]
        self.works[measurement.name].add(keys, {name: np.asarray(value) for name, value in answer.items()})
        self._done += len(entries)
        if self._progress is not None:
            self._progress(self._done, self._total, measurement.name)

    def forget_stale(self, entries: list[SnapshotEntry]) -> None:
        """Delete finished work on snapshots that the run no longer has."""
        for measurement in self._table:
            self.works[measurement.name].forget_all_but({self.key(measurement, entry) for entry in entries})


def _pick(params: StackedParams, indexes: list[int], n: int) -> StackedParams:
    return params if len(indexes) == n else {name: value[indexes] for name, value in params.items()}


def _batches(entries: list[SnapshotEntry]) -> list[list[SnapshotEntry]]:
    """Batches of nearly equal size that fit in memory."""
    if not entries:
        return []
    largest = max(1, min(_MAX_BATCH, _BATCH_BYTES // max(entry.n_bytes for entry in entries)))
    n_batches = -(-len(entries) // largest)
    bounds = np.linspace(0, len(entries), n_batches + 1).round().astype(int)
    return [entries[a:b] for a, b in pairwise(bounds)]


def load_stacked(run: RunDir, steps: Sequence[int]) -> StackedParams:
    """Parameters of several snapshots, the snapshot axis in front.

    Raises UserError if one is missing, damaged or does not have the shapes of the run's config.
    """
    expected = param_shapes(run.config.model)
    loaded = [run.load_params(step) for step in steps]
    for step, params in zip(steps, loaded, strict=True):
        found = {name: array.shape for name, array in params.items()}
        if found != expected:
            odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))[0]
            what = f"{odd} has the shape {found.get(odd)}, but the config says {expected.get(odd)}"
            raise UserError(f"{run.path / 'snapshots' / str(step)}: {what}")
    if len(loaded) == 1:  # no second copy of a large snapshot
        return {name: loaded[0][name][None] for name in expected}
    return {name: np.stack([params[name] for params in loaded]) for name in expected}
