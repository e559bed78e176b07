"""A sweep's members, by W&B's scheduler online or drawn here without it, and the table that they end in."""

import csv
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Column, Table

from icl_jax.config import Config, UserError, load_config, numeric_differences
from icl_jax.config.builtin import config_file
from icl_jax.config.sameness import numbers_of
from icl_jax.config.tables import flat
from icl_jax.display import say
from icl_jax.rundir import RunDir
from icl_jax.rundir.files import reason
from icl_jax.rundir.members import MEMBERS, member_of
from icl_jax.suites.jobs import Job
from icl_jax.suites.run_suite import longest_first, prepare, run_members, tracked, train_command
from icl_jax.suites.sweep_file import SweepFile, load_sweep
from icl_jax.suites.together import together

_TRAIN = "from icl_jax.cli.main import main; main()"
_MEMBER = "from icl_jax.suites.run_sweep import train_member; train_member()"


def run_local(
    file: SweepFile, base: Config, out: Path, console: Console, *, count: int = 0, n_slots: int = 0,
    dry_run: bool = False, is_apart: bool = False,
) -> int:  # fmt: skip
    """Go on with the sweep in the folder `out`, its values drawn here. Returns 0, or 130 on SIGINT. Raises UserError.

    `count`: runs; 0: the whole grid. `n_slots`: runs at a time; 0: one for each GPU or core. Those that differ in
    nothing that changes a shape are the members of one run, unless `is_apart`, or W&B is to have a run of each. What
    has been begun stays as it was begun.
    """
    members = file.members(count)
    drawn = {name: tracked(file.config(base, values), file.name, "") for name, values in members.items()}
    grouped = _begun(out, drawn)
    begun = {name for _, names in grouped.values() for name in names}
    rest = {name: config for name, config in drawn.items() if name not in begun}
    is_apart = is_apart or base.tracker.wandb == "offline"
    grouped |= {name: (config, [name]) for name, config in rest.items()} if is_apart else together(rest)
    runs = {name: config for name, (config, _) in grouped.items()}
    todo = [name for name, config in runs.items() if not _is_finished(out / name, config)]
    say(console, f"{file.path}: {len(runs)} runs, {len(runs) - len(todo)} of them finished, in {out}")
    if dry_run:
        for name in runs:
            say(console, f"  {name}" + ("" if name in todo else "  (finished)"))
            for member in grouped[name][1] if runs[name].members else ():
                say(console, f"    {member}")
        return 0
    prepare({name: runs[name] for name in todo}, out, console)
    failure = None
    try:
        jobs = [Job(name, [train_command(name, out)]) for name in longest_first({name: runs[name] for name in todo})]
        status = run_members(jobs, n_slots, out, console) if jobs else None
    except UserError as error:  # a loss that is not finite, say, must not hide what the others found
        status, failure = None, error
    if status is not None:
        return status
    places = {
        member: out / name / MEMBERS / str(k) if runs[name].members else out / name
        for name, (_, names) in grouped.items()
        for k, member in enumerate(names)
    }
    _show(out, file.varied, {name: (drawn[name], path) for name, path in places.items()}, console)
    if failure is not None:
        raise failure
    return 0


def _begun(out: Path, drawn: Mapping[str, Config]) -> dict[str, tuple[Config, list[str]]]:
    """Runs that are there, and which of those that were drawn they are, by the names of their folders."""
    names = {numbers_of(config): name for name, config in drawn.items()}
    found: dict[str, tuple[Config, list[str]]] = {}
    for path in sorted(out.iterdir()) if out.is_dir() else ():
        if not RunDir.is_run(str(path)):
            continue
        run = RunDir.open(str(path))
        if not run.config.members:
            if path.name in drawn:  # a run of another config under this name is for `train` to refuse
                found[path.name] = (drawn[path.name], [path.name])
            continue
        its = [names.get(numbers_of(one.config), "") for one in run.each()]
        if all(its) and not any(name in others for name in its for _, others in found.values()):
            found[path.name] = (replace(drawn[its[0]], members=run.config.members), its)
    return found


def _is_finished(path: Path, config: Config) -> bool:
    if not RunDir.is_run(str(path)):
        return False
    run = RunDir.open(str(path))
    # A run of another config under this name is for `train` to refuse.
    return run.last_state_step() == config.train.n_steps and not numeric_differences(run.config, config)


def run_online(
    file: SweepFile, path: Path, base: Config, out: Path, console: Console, *, count: int = 0, dry_run: bool = False
) -> int:
    """W&B chooses the values; its agent trains one run at a time here, and others may join it. Raises UserError.

    `path`: the file of the config `base`. `count`: runs; 0: until W&B has no more.
    """
    out = out.resolve()
    member = [sys.executable, "-c", _MEMBER, str(file.path.resolve()), str(path.resolve()), str(out), "${args_json}"]
    spec = {"name": file.name, "program": "icl-jax", "command": member, **file.spec}
    if dry_run:
        say(console, f"W&B would be given this sweep, and {count or 'all'} of its runs trained here, in {out}:")
        say(console, yaml.safe_dump(spec, sort_keys=False))
        return 0
    import wandb

    from icl_jax.train.watch.wandb_run import server_address

    say(console, f"asks W&B at {server_address()}, half a minute at most")
    kept = out / "wandb-sweep.txt"  # the second call goes on with the same sweep
    entity, project = base.tracker.entity or None, base.tracker.project
    try:
        if not kept.exists():
            out.mkdir(parents=True, exist_ok=True)
            kept.write_text(wandb.sweep(spec, entity=entity, project=project), encoding="utf-8")
        sweep_id = kept.read_text(encoding="utf-8").strip()
        full = "/".join(part for part in (entity, project, sweep_id) if part)
        say(console, f"more runs at a time, from other terminals and on other GPUs: wandb agent {full}")
        wandb.agent(sweep_id, entity=entity, project=project, count=count or None)
    except Exception as error:  # W&B's, requests', the file's
        raise UserError(f"W&B sweep of {out}: {reason(error)}") from None
    runs = [path for path in sorted(out.iterdir()) if RunDir.is_run(str(path))]
    trained = {path.name: (RunDir.open(str(path)).config, path) for path in runs}
    _show(out, file.varied, trained, console)
    return 0


def train_member() -> None:
    """What W&B's agent starts: trains the config of the values that it gives as JSON.

    W&B may draw the same values twice, and continues a run that was preempted: its run id is part of the name.
    """
    sweep_path, config_path, out, values = sys.argv[1:]
    try:
        file = load_sweep(Path(sweep_path))
        base = load_config(config_file(config_path))
        drawn = json.loads(values)
        name = f"{file.member_name(drawn)},id={os.environ['WANDB_RUN_ID']}"
        prepare({name: file.config(base, drawn)}, Path(out), Console())
    except UserError as error:
        print(f"icl-jax: {error}", file=sys.stderr)
        sys.exit(2)
    os.execv(sys.executable, [sys.executable, "-c", _TRAIN, *train_command(name, Path(out))])


def _show(out: Path, varied: list[str], runs: Mapping[str, tuple[Config, Path]], console: Console) -> None:
    """A row for each member, on the console and in OUT/sweep.csv."""
    header = [*varied, "final loss", "ICL score", "phase change", "heads form at", "run"]
    rows = [[str(flat(config).get(name, "")) for name in varied] + _measured(path) for config, path in runs.values()]
    table = Table(*(Column(name, no_wrap=name != "run", overflow="fold") for name in header), box=None)
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)
    with (out / "sweep.csv").open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    say(console, f"the table: {out / 'sweep.csv'}")


def _measured(path: Path) -> list[str]:
    """Loss of the last step, windowed ICL score of the last probe, nats; phase change; where heads formed; path."""
    is_there = RunDir.is_run(str(path)) or member_of(str(path)) is not None
    run = RunDir.open(str(path)) if is_there else None
    if run is None or run.last_state_step() != run.config.train.n_steps:
        return ["not finished", "", "", "", str(path)]
    from icl_jax.maths.finding import find_in_record
    from icl_jax.report.changes import window_words
    from icl_jax.train.session import seen_induction_head

    record = run.load_record()
    if record.sizes["step"] < run.config.train.n_steps:  # a member; the others went on
        return [f"failed at step {record.sizes['step']}", "", "", "", str(path)]
    head = seen_induction_head(record)
    change = find_in_record(record)
    icl = f"{float(record['icl_windowed'][-1]):.3f}" if "icl_windowed" in record else "no probes"
    formed = str(head.tokens) if head else "never"
    changed = "no probes" if change is None else window_words([change])
    return [f"{float(record['loss'][-1].mean()):.3f}", icl, changed, formed, str(path)]
