"""`icl-jax reproduce`: a suite of runs, trained, analyzed and put into one report."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.cli.compile import plan_suite, table_rows
from icl_jax.config import Config, UserError, dump_config, rows_of
from icl_jax.config.builtin import suite_file
from icl_jax.suites.jobs import Job, Stopped, device_slots, has_accelerators, run_jobs
from icl_jax.suites.suite import Analysis, Suite, load_suite


@dataclass(frozen=True, kw_only=True)
class ReproduceArgs:
    """Arguments of `icl-jax reproduce`."""

    suite: Annotated[Positional[str], tyro.conf.arg(metavar="SUITE")] = "quick"
    """The name of a suite that comes with icl-jax, or a TOML file."""
    out: str = ""
    """Folder of the runs and the report. Default: runs/NAME-OF-SUITE."""
    jobs: int = 0
    """Runs at a time; 0: one for each GPU, or for each CPU core."""


def find_suite(name: str) -> Suite:
    """The suite that a command names. Raises UserError."""
    return load_suite(suite_file(name))


def reproduce(args: ReproduceArgs, console: Console) -> int:
    """Go on with the suite where it stands. Returns 0, 130 on SIGINT, 2 where a run failed. Raises UserError."""
    if args.jobs < 0:
        raise UserError(f"--jobs = {args.jobs}: must be 0 or more")
    suite = find_suite(args.suite)
    out = Path(args.out or Path("runs") / suite.name)
    runs = {
        name: tracked(config, suite.name, member.name)
        for member in suite.members
        for name, config in member.runs().items()
    }
    if any(config.launch.topology for config in runs.values()) and not has_accelerators():
        _plan(runs, out, console)
        return 0
    prepare(runs, out, console)
    jobs = [_job(name, out, member.analysis) for member in suite.members for name in member.runs()]
    status = run_members(jobs, args.jobs, out, console)
    if status is not None:
        return status
    _report(suite, out, console)
    return 0


def run_members(jobs: Sequence[Job], n_slots: int, out: Path, console: Console) -> int | None:
    """Run the jobs of the run directories OUT/NAME. Returns the exit status where a signal ended them, else None.

    Raises UserError where a job failed, once all have ended.
    """
    try:
        failed = run_jobs(jobs, device_slots(len(jobs), n_slots), out / "logs", console)
    except Stopped as stopped:
        signum = signal.Signals(stopped.args[0])
        _say(console, f"{signum.name}: states are saved; the same command goes on from there")
        return 130 if signum == signal.SIGINT else 0
    if failed:
        name, line = next(iter(failed.items()))
        more = f" ({len(failed)} runs failed)" if len(failed) > 1 else ""
        raise UserError(f"{out / name}: {line.removeprefix('icl-jax: ')}{more}; see {out / 'logs' / name}.log")
    return None


def tracked(config: Config, group: str, job_type: str) -> Config:
    """The suite's runs are one W&B group, the seeds of a member have one job type; what the user set stays."""
    tracker = config.tracker
    tracker = replace(tracker, group=tracker.group or group, job_type=tracker.job_type or job_type)
    return replace(config, tracker=tracker)


def _plan(runs: dict[str, Config], out: Path, console: Console) -> None:
    """What the suite needs on TPU slices, from the compiled programs, in place of training it on a CPU."""
    _say(console, "no accelerator here: the plan of each run on its slice, compiled for it; a bound, not a forecast")
    plans = plan_suite({name: config for name, config in runs.items() if config.launch.topology}, out / "plan", console)
    for line in table_rows(plans):
        _say(console, line)
    estimates = [plan.estimate for plan in plans if plan.estimate is not None]
    usd = sum(estimate.usd or 0.0 for estimate in estimates)
    _say(console, f"{len(plans)} runs, {sum(e.chip_hours for e in estimates):,.0f} chip-hours, ${usd:,.0f} at best")
    _say(console, "the same command trains on the chips of one machine; on each machine of a slice, a run at a time:")
    _say(console, f"icl-jax train {next(iter(runs))} --coordinator auto --run gs://BUCKET/...")


def _report(suite: Suite, out: Path, console: Console) -> None:
    """Write pictures, page and tables, and say where they are."""
    # The report draws patterns; until here JAX was the jobs'.
    process.configure_jax(process.cpu_count())
    from icl_jax.analysis.opened_run import open_run
    from icl_jax.report import write_report
    from icl_jax.report.suite.phase_change import load_curve, plot_phase_change
    from icl_jax.report.suite.suite_table import behaviour_tables, behaviours_by_title, suite_table, write_behaviours
    from icl_jax.report.suite.tasks import PICTURES

    titles = {member.title: [str(out / name) for name in member.runs()] for member in suite.members}
    page = write_report([path for paths in titles.values() for path in paths], out / "report")
    pictures = [out / "phase_change.png"]
    # One corpus a picture: the first member's.
    rows = rows_of(suite.members[0].config)
    compared = [member.title for member in suite.members if rows_of(member.config) == rows]
    plot_phase_change([load_curve(titles[title][0], title) for title in compared], pictures[0])
    for member in suite.members:
        if draw := PICTURES.get(member.config.data.source):
            pictures.append(out / f"{member.name}.png")
            draw(open_run(titles[member.title][0]), pictures[-1])
    console.print(suite_table(titles))
    found = behaviours_by_title(titles)
    for table in behaviour_tables(found):
        console.print(table)
    if found:
        write_behaviours(found, out / "report" / "behaviours.csv")
    for picture in pictures:
        _say(console, f"the picture: {picture}")
    _say(console, f"the report: {page}")


def prepare(runs: dict[str, Config], out: Path, console: Console) -> None:
    """Write the runs' configs, and prepare each corpus once before several runs want it at the same time."""
    from icl_jax.cli.data import open_corpus

    folder = out / "configs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, config in runs.items():
            (folder / f"{name}.toml").write_text(dump_config(config), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write: {error.strerror}") from None
    prepared = set()
    for config in runs.values():
        key = (config.data, config.model.vocab_size, config.model.n_ctx)
        if key not in prepared:
            prepared.add(key)
            open_corpus(config, console)


def _job(name: str, out: Path, analysis: Analysis) -> Job:
    run = str(out / name)
    analyze = ["analyze", run]
    analyze += ["--snapshots", str(analysis.snapshots)] if analysis.snapshots else []
    analyze += ["--rows", str(analysis.rows)] if analysis.rows else []
    analyze += ["--only", ",".join(analysis.only)] if analysis.only else []
    return Job(name, [train_command(name, out), analyze])


def train_command(name: str, out: Path) -> list[str]:
    """Trains a config that `prepare` has written."""
    return ["train", str(out / "configs" / f"{name}.toml"), "--run", str(out / name)]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
