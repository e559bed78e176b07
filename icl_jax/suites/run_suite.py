"""A suite, trained, analyzed and put into one report; and what it shares with a sweep: many runs in one folder."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from icl_jax import process
from icl_jax.analysis.checks import check_names
from icl_jax.config import Config, UserError, dump_config, rows_of
from icl_jax.display import say
from icl_jax.suites.jobs import Job, Stopped, device_slots, run_jobs
from icl_jax.suites.suite import Analysis, Suite


def suite_runs(suite: Suite) -> dict[str, Config]:
    """The config of every run of a suite, by the name of its folder."""
    return {
        name: tracked(config, suite.name, member.name)
        for member in suite.members
        for name, config in member.runs().items()
    }


def run_suite(suite: Suite, out: Path, n_slots: int, console: Console) -> int:
    """Go on with the suite where it stands, in the folder `out`. Returns 0, or 130 on SIGINT.

    `n_slots`: runs at a time; 0: one for each GPU or core. What the report will lack is said before anything is
    trained. Raises UserError, for runs that failed too.
    """
    tell_left_out(suite, console)
    runs = suite_runs(suite)
    prepare(runs, out, console)
    analyses = {name: member.analysis for member in suite.members for name in member.runs()}
    jobs = [_job(name, out, analyses[name]) for name in longest_first(runs)]
    status = run_members(jobs, n_slots, out, console)
    if status is None:
        _report(suite, out, console)
    return status or 0


def tell_left_out(suite: Suite, console: Console) -> None:
    """Say what analysis.only leaves out of the report. Raises UserError where it names no measurement."""
    if not any(member.analysis.only for member in suite.members):
        return
    for member in suite.members:
        try:
            check_names(member.analysis.only)
        except UserError as error:
            raise UserError(f"{suite.name}: {member.name}: analysis.{str(error).removeprefix('--')}") from None
    from icl_jax.analysis.run_measurements import with_needs
    from icl_jax.measures.table import TABLE
    from icl_jax.report.left_out import left_out

    members: dict[tuple[str, ...], list[str]] = {}
    for member in suite.members:
        taken = with_needs(member.analysis.only or None, TABLE)
        members.setdefault(tuple(left_out(member.config.data.source, taken)), []).append(member.name)
    for lacking, names in members.items():
        if lacking:
            say(console, f"{', '.join(names)}: analysis.only leaves out of the report: {', '.join(lacking)}")


def tracked(config: Config, group: str, job_type: str) -> Config:
    """The suite's runs are one W&B group, the seeds of a member have one job type; what the user set stays."""
    tracker = config.tracker
    tracker = replace(tracker, group=tracker.group or group, job_type=tracker.job_type or job_type)
    return replace(config, tracker=tracker)


def prepare(runs: Mapping[str, Config], out: Path, console: Console) -> None:
    """Write the runs' configs, and prepare each corpus once before several runs want it at the same time."""
    from icl_jax.data import open_shown

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
            open_shown(config, console)


def run_members(jobs: Sequence[Job], n_slots: int, out: Path, console: Console) -> int | None:
    """Run the jobs of the run directories OUT/NAME. Returns the exit status where a signal ended them, else None.

    Raises UserError where a job failed, once all have ended.
    """
    try:
        failed = run_jobs(jobs, device_slots(len(jobs), n_slots), out / "logs", console)
    except Stopped as stopped:
        signum = signal.Signals(stopped.args[0])
        say(console, f"{signum.name}: states are saved; the same command goes on from there")
        return 130 if signum == signal.SIGINT else 0
    if failed:
        name, line = next(iter(failed.items()))
        more = f" ({len(failed)} runs failed)" if len(failed) > 1 else ""
        raise UserError(f"{out / name}: {line.removeprefix('icl-jax: ')}{more}; see {out / 'logs' / name}.log")
    return None


def longest_first(runs: Mapping[str, Config]) -> list[str]:
    """Names of runs by the arithmetic of their training, most first: a long one that starts last runs by itself."""
    from icl_jax.plan.flops import step_flops

    def flops(config: Config) -> int:
        return step_flops(config) * config.train.n_steps * max(len(config.members), 1)

    return sorted(runs, key=lambda name: -flops(runs[name]))


def train_command(name: str, out: Path) -> list[str]:
    """Trains a config that `prepare` has written."""
    return ["train", str(out / "configs" / f"{name}.toml"), "--run", str(out / name)]


def _job(name: str, out: Path, analysis: Analysis) -> Job:
    analyze = ["analyze", str(out / name)]
    analyze += ["--snapshots", str(analysis.snapshots)] if analysis.snapshots else []
    analyze += ["--rows", str(analysis.rows)] if analysis.rows else []
    analyze += ["--only", ",".join(analysis.only)] if analysis.only else []
    return Job(name, [train_command(name, out), analyze])


def _report(suite: Suite, out: Path, console: Console) -> None:
    """Write the page, the picture and the tables, and say where they are."""
    # The report draws patterns; until here JAX was the jobs'.
    process.configure_jax(process.cpu_count())
    from icl_jax.report import write_report
    from icl_jax.report.axes import axes_of, laws_rows
    from icl_jax.report.causes import causes_rows, seeds_of
    from icl_jax.report.figures import phase_change
    from icl_jax.report.members import reported_members
    from icl_jax.report.pictures import save_picture
    from icl_jax.report.reported_run import ReportedRun
    from icl_jax.report.suite.suite_table import behaviour_tables, behaviours_by_title, suite_table, write_behaviours
    from icl_jax.rundir import RunDir

    titles = {member.title: [str(out / name) for name in member.models()] for member in suite.members}
    page = write_report([str(out / name) for member in suite.members for name in member.runs()], out / "report")
    # One corpus a picture: the first member's.
    rows = rows_of(suite.members[0].config)
    compared = [member.title for member in suite.members if rows_of(member.config) == rows]
    picture = out / "phase_change.png"
    first_seeds = [ReportedRun(RunDir.open(titles[title][0]), title) for title in compared]
    is_drawn = save_picture(phase_change.FIGURE, first_seeds, picture)
    console.print(suite_table(titles))
    several = [
        (member.title, run)
        for member in suite.members
        for name in member.runs()
        if (run := RunDir.open(str(out / name))).config.members
    ]
    if axes := axes_of([reported_members(run, run.path.name) for _, run in several]):
        console.print(_table("when an induction head has formed, as a power of what is varied", *laws_rows(axes)))
    if seeds := seeds_of([run for _, run in several], [title for title, _ in several]):
        console.print(_table("the change under interventions, medians and means over seeds", *causes_rows(seeds)))
    behaviours = behaviours_by_title(titles)
    for table in behaviour_tables(behaviours):
        console.print(table)
    if behaviours:
        write_behaviours(behaviours, out / "report" / "behaviours.csv")
    if is_drawn:
        say(console, f"the picture: {picture}")
    say(console, f"the report: {page}")


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*header, box=None, title=title)
    for cells in rows:
        table.add_row(*cells)
    return table
