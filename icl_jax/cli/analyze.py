"""`icl-jax analyze`: measurements of a run's snapshots, and what they say about the phase change."""

import time
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.analysis.checks import check_analysis, check_names
from icl_jax.config import UserError
from icl_jax.display import MeasurementsDisplay, say
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax


@dataclass(frozen=True, kw_only=True)
class AnalyzeArgs:
    """Arguments of `icl-jax analyze`."""

    runs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")] = ()
    """Run directories; of one with members all of them, RUN/members/K one of them."""
    only: str = ""
    """Measurements to take, such as head_scores,icl; what they need is taken too. Default: all that apply."""
    snapshots: str = ""
    """How many, spread over the run (20), or at which steps (0,100,200). Default: all."""
    rows: int = 0
    """Held-out rows to measure on; 0: 65,536 tokens' worth. The run directory holds up to 1,024."""
    show: bool = False
    """Print the phase change: window, ICL score before and after, heads. Analyzes first a run that never was."""
    list: bool = False
    """Print the table of measurements and stop."""


def analyze(args: AnalyzeArgs, console: Console) -> int:
    """Take what is missing, for each run in turn. Returns the exit status 0. Raises UserError."""
    if args.list:
        _print_list(console)
        return 0
    if not args.runs:
        raise UserError("RUN is missing; see icl-jax analyze --help")
    if args.rows < 0:
        raise UserError(f"--rows = {args.rows}: must be 0 or more")
    snapshots = _parse_snapshots(args.snapshots)
    only = [name.strip() for name in args.only.split(",") if name.strip()] or None
    check_names(only)
    quiet_orbax()
    opened = [RunDir.open(path) for path in args.runs]
    for whole in opened:
        for run in whole.each():
            check_analysis(run, snapshots)
    # A snapshot on each device, side by side: faster than one device with as many threads.
    process.configure_jax(process.cpu_count())
    process.devices()
    is_chosen = only is not None or snapshots is not None or args.rows
    for run in opened:
        if args.show and not is_chosen:
            bring_up_to_date(run, console)
        else:
            _take(run, console, only=only, snapshots=snapshots, n_rows=args.rows or None)
        if args.show:
            say(console, "\n".join(_table(run)))
    return 0


def _table(run: RunDir) -> list[str]:
    from icl_jax.analysis.dataset import load_dataset
    from icl_jax.report.members_table import members_table
    from icl_jax.report.phase_table import phase_table

    if run.config.members and not (run.path / "analysis.zarr").exists():
        return [f"analysis of {len(run.config.members)} members; the phase change was not asked for"]
    dataset = load_dataset(run.path / "analysis.zarr").load()
    return members_table(dataset) if run.config.members else phase_table(dataset)


def bring_up_to_date(run: RunDir, console: Console) -> None:
    """Analyze a run that never was, or that has changed since. Raises UserError."""
    from icl_jax.analysis.dataset import asked_of, load_dataset, outdated

    places = [run, *run.each()] if run.config.members else [run]
    known = [(one, load_dataset(path)) for one in places if (path := one.path / "analysis.zarr").exists()]
    stale = [(one, dataset, change) for one, dataset in known if (change := outdated(one, dataset))]
    if not stale and len(known) == len(places):
        return
    if stale:
        say(console, f"{stale[0][2]}: measuring what is new")
    asked = [asked_of(dataset) for one, dataset, _ in stale if not one.config.members]
    _take(run, console, **(asked[0] if asked else {}))


def _take(run: RunDir, console: Console, **asked: Any) -> None:
    from icl_jax.analysis.over_members import analyze_over_members, brief
    from icl_jax.analysis.run_measurements import analyze as take
    from icl_jax.analysis.run_measurements import analyze_members

    def waiting() -> None:
        say(console, f"{run.path}: another process is analyzing it: waiting until it has ended")

    started = time.monotonic()
    with MeasurementsDisplay(console, str(run.path)) as display:
        if run.config.members:
            briefs = {}
            for member, dataset in analyze_members(run, progress=display.update, waiting=waiting, **asked):
                n_variables, n_snapshots = len(dataset.data_vars), dataset.sizes["snapshot"]
                briefs[member.index or 0] = brief(dataset)
        else:
            dataset = take(run, progress=display.update, waiting=waiting, **asked)
            n_variables, n_snapshots = len(dataset.data_vars), dataset.sizes["snapshot"]
    took = f"{display.n_taken} measurements taken in {time.monotonic() - started:.0f} s"
    n, path = len(run.config.members), run.path
    where = f"{path / 'members'}: of {n} members each" if n else f"{path / 'analysis.zarr'}:"
    say(console, f"{where} {n_variables} variables of {n_snapshots} snapshots; {took}")
    if run.config.members and (run.config.probes.n_probes or "icl_windowed" in briefs[0]):
        analyze_over_members(run, briefs)


def _parse_snapshots(text: str) -> int | list[int] | None:
    if not text:
        return None
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        allowed = "must be a number such as 20, or steps such as 0,100,200"
        raise UserError(f"--snapshots = {text!r}: {allowed}") from None
    return numbers if "," in text else numbers[0]


def _print_list(console: Console) -> None:
    from icl_jax.measures.measurement import Measurement
    from icl_jax.measures.table import TABLE

    for entry in TABLE:
        say(console, f"{entry.name}  ({entry.source}; docs/measures.md#{entry.name})")
        for name, variable in entry.variables.items():
            dims = (entry.snapshot_dim, *variable.dims) if isinstance(entry, Measurement) else variable.dims
            label = f"{name} ({', '.join(dims)})"
            say(console, f"  {label:<62} {variable.units:<10} {variable.text}")
