"""Every measurement over every snapshot of a run, into RUN/analysis.zarr."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import xarray as xr

from icl_jax.analysis.choose_snapshots import choose_entries, choose_few
from icl_jax.analysis.dataset import build_dataset, note_asked, save_dataset
from icl_jax.analysis.recorded import recorded_of, recorded_of_members
from icl_jax.analysis.session import Count, Progress, Session, take
from icl_jax.config import UserError
from icl_jax.measures.measurement import Context, Derived, Measurement
from icl_jax.measures.table import TABLE
from icl_jax.rundir import RunDir
from icl_jax.rundir.lock import exclusive
from icl_jax.rundir.place import writing

# Whose answers are in memory until their datasets are written.
_MEMBERS_AT_A_TIME = 64
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
    waiting: Callable[[], object] = lambda: None,
) -> xr.Dataset:
    """Take the measurements that the run lacks, write RUN/analysis.zarr and return it.

    `only`: names of measurements to take, what they need is taken too. `snapshots`: so many, or these steps; default
    all. `n_rows`: held-out rows; default 65,536 tokens' worth. A killed analysis goes on where it was. The dataset
    holds what has been taken on all chosen snapshots, now or before; its attribute `absent` (JSON) says why the rest is
    not there. One process at a time analyzes a run: `waiting` is called where another does. Raises UserError for a name
    or step that does not exist, a run without snapshots or held-out rows, one with members (see `analyze_members`), and
    a folder that cannot be written.
    """
    context = make_context(run.one(), n_rows)
    return _analyze(run, [run], [context], only, snapshots, Count(progress), table, waiting)[0]


def analyze_members(
    run: RunDir,
    *,
    only: Sequence[str] | None = None,
    snapshots: int | Sequence[int] | None = None,
    n_rows: int | None = None,
    progress: Progress | None = None,
    table: tuple[Measurement | Derived, ...] = TABLE,
    waiting: Callable[[], object] = lambda: None,
) -> Iterator[tuple[RunDir, xr.Dataset]]:
    """`analyze` of each member of a run with members: the member and its dataset, which is RUN/members/K/analysis.zarr.

    A snapshot is read once for up to 64 members, and programs are compiled once for all.
    """
    members = run.each()
    by_rows = {run.config.data.seed: make_context(members[0], n_rows)}
    recorded, count = recorded_of_members(run), Count(progress)

    def context(member: RunDir) -> Context:
        seed = member.config.data.seed
        if seed not in by_rows:
            by_rows[seed] = make_context(member, n_rows)
        return by_rows[seed].of_member(member.config, recorded[member.index or 0])

    for first in range(0, len(members), _MEMBERS_AT_A_TIME):
        some = members[first : first + _MEMBERS_AT_A_TIME]
        contexts = [context(member) for member in some]
        yield from zip(some, _analyze(run, some, contexts, only, snapshots, count, table, waiting), strict=True)


def _analyze(
    source: RunDir,
    runs: list[RunDir],
    contexts: list[Context],
    only: Sequence[str] | None,
    snapshots: int | Sequence[int] | None,
    count: Count,
    table: tuple[Measurement | Derived, ...],
    waiting: Callable[[], object],
) -> list[xr.Dataset]:
    """The analyses of runs whose parameters are read from `source`: the one run, or that of which they are members."""
    entries = [run.snapshots() for run in runs]
    chosen = [choose_entries(one, snapshots) for one in entries]
    wanted = with_needs(only, table)
    if only is None:
        wanted -= {m.name for m in table if isinstance(m, Measurement) and m.too_much(contexts[0])}
    with _held(source, runs, waiting):
        sessions = [Session(run, context, table, count) for run, context in zip(runs, contexts, strict=True)]
        measurements = [m for m in table if isinstance(m, Measurement) and m.name in wanted]
        take(source, sessions, [m for m in measurements if not m.on_few], chosen)
        has_few = any(isinstance(m, Measurement) and m.on_few for m in table)
        # Where any are on few snapshots, the window comes first and all the rest once those are taken.
        names = {entry.name for entry in table}
        first = with_needs([_WINDOW] if _WINDOW in names else [], table) if has_few else names
        part = tuple(entry for entry in table if entry.name in first)
        datasets = [
            build_dataset(session.run, session.context, part, session.works, some, [], wanted)
            for session, some in zip(sessions, chosen, strict=True)
        ]
        if has_few:
            few = [
                [some[i] for i in choose_few(dataset["tokens"].values, _window(dataset))]
                for dataset, some in zip(datasets, chosen, strict=True)
            ]
            take(source, sessions, [m for m in measurements if m.on_few], few)
            datasets = [
                build_dataset(session.run, session.context, table, session.works, some, selected, wanted)
                for session, some, selected in zip(sessions, chosen, few, strict=True)
            ]
        for i, session in enumerate(sessions):
            datasets[i] = note_asked(datasets[i], entries[i], snapshots)
            save_dataset(datasets[i], session.run.path / "analysis.zarr")
            session.forget_stale(entries[i])
        return datasets


@contextlib.contextmanager
def _held(source: RunDir, runs: list[RunDir], waiting: Callable[[], object]) -> Iterator[None]:
    """The analyses of the runs, held against other processes; what the system refuses to write is said of `source`."""
    with contextlib.ExitStack() as held, writing(source.path):
        for run in runs:
            held.enter_context(exclusive(run.path / "analysis_parts", waiting))
        yield


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
