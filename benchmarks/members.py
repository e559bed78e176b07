"""What many seeds in one program cost, against one seed, and whether each is the run that it is alone.

Whole commands are timed, start and compilation included. `--alone` members are trained by themselves too: on a CPU all
their losses must be equal, elsewhere those of the first 50 steps to 1e-5, and the phase change must come at the same
place within the probes around it. Writes runs/bench/members.json beside the printed table.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import xarray as xr
from rich.console import Console
from rich.table import Table

from icl_jax.maths.finding import find_in_record
from icl_jax.rundir import RunDir

_CLI = (sys.executable, "-c", "from icl_jax.cli.main import main; main()")
_FIRST_STEPS = 50
_MOST_DETECTED = 64


@dataclass(frozen=True)
class Args:
    """What to measure."""

    config: str = "repeats-2l"
    """Config of the run."""
    members: tuple[int, ...] = (1, 8, 64)
    """Numbers of seeds; 1 is the run without members."""
    steps: int = 0
    """Steps of each; 0: the config's."""
    snapshots: int = 30
    """Snapshots kept, spaced evenly in the logarithm of the step."""
    probes: int = 50
    """Times that live measures are taken."""
    alone: int = 2
    """Members of the largest number that are trained alone and compared."""
    analyze: bool = False
    """Analyze each run too: every measurement of its snapshots."""
    devices: int = 0
    """Devices to train on; 0: all."""
    out: Path = Path("runs/bench/members.json")
    """Where the JSON goes."""


def train(args: Args, folder: str, *options: str) -> tuple[RunDir, dict[str, float]]:
    """Train by the command, and what it took: wall-clock and CPU seconds, and the median of a step."""
    path = str(Path(folder) / str(len(os.listdir(folder))))
    command = [
        *_CLI, "train", args.config, "--run", path, "--tracker.wandb", "disabled", "--snapshots.n-linear", "0",
        "--snapshots.n-log", str(args.snapshots), "--probes.n-probes", str(args.probes), *options,
        *(("--train.n-steps", str(args.steps)) if args.steps else ()),
        *(("--devices", str(args.devices)) if args.devices and "--devices" not in options else ()),
    ]  # fmt: skip
    took = timed(command, "")
    if args.analyze:
        took |= timed([*_CLI, "analyze", path], "analysis_")
    run = RunDir.open(path)
    return run, took | {"step_s": float(np.median(run.load_record()["step_s"].values))}


def timed(command: list[str], prefix: str) -> dict[str, float]:
    """Run a command, and what it took: wall-clock and CPU seconds, named with a prefix."""
    cpu_s, start_s = sum(os.times()[2:4]), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[3:])}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    print(done.stdout.strip().splitlines()[0], flush=True)
    return {f"{prefix}wall_s": time.perf_counter() - start_s, f"{prefix}cpu_s": sum(os.times()[2:4]) - cpu_s}


def change_start(record: xr.Dataset) -> float | None:
    """Tokens at which the largest change of a record starts; None without one."""
    finding = find_in_record(record)
    return None if finding is None or finding.largest is None else float(finding.largest.start)


def compare(member: RunDir, alone: RunDir) -> dict[str, Any]:
    """How far a member is from the run alone, and the tokens at which the phase change of each starts."""
    found, expected = member.load_record(), alone.load_record()
    difference = np.abs(found["loss"].values - expected["loss"].values)
    return {
        "member": member.index,
        "first_steps": float(difference[:_FIRST_STEPS].max()),
        "all_steps": float(difference.max()),
        "change_starts": [change_start(found), change_start(expected)],
    }


def main(args: Args) -> None:
    """Measure, print, write."""
    results: dict[str, Any] = {"config": args.config, "steps": args.steps, "runs": {}, "compared": []}
    folder = tempfile.mkdtemp()
    try:
        for n in args.members:
            options = ("--members.seeds", str(n)) if n > 1 else ()
            run, took = train(args, folder, *options)
            results["runs"][n] = took
            print(n, took, flush=True)
        for k in range(args.alone if args.members[-1] > 1 else 0):
            alone, _ = train(args, folder, "--train.seed", str(k), "--devices", "1")
            results["compared"].append(compare(run.member(k), alone))
            print(results["compared"][-1], flush=True)
        results["device"] = run.environment["starts"][-1]["devices"]
        record = run.load_record()
        each = [record.isel(member=k) for k in range(min(args.members[-1], _MOST_DETECTED))] if n > 1 else [record]
        starts = [change_start(one) for one in each]
        known = [start for start in starts if start is not None]
        results["changed"] = {"of": len(starts), "starts": known}
        if known:
            print(f"{len(known)} of {len(starts)} changed, at {np.quantile(known, [0.05, 0.5, 0.95])} tokens")
    finally:
        shutil.rmtree(folder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    columns = ["members", "wall s", "wall / first", "s a member", "CPU s", "step s"]
    columns += ["analysis, CPU s", "CPU s a member, all", "of the first"] if args.analyze else []
    table = Table(*columns, title=args.config)
    first = results["runs"][args.members[0]]
    for n, took in results["runs"].items():
        wall = took["wall_s"]
        cells = [
            str(n), f"{wall:.1f}", f"{wall / first['wall_s']:.2f}", f"{wall / n:.2f}", f"{took['cpu_s']:.0f}",
            f"{took['step_s']:.4f}",
        ]  # fmt: skip
        if args.analyze:
            each, of_first = (
                (one["cpu_s"] + one["analysis_cpu_s"]) / m for one, m in ((took, n), (first, args.members[0]))
            )
            cells += [f"{took['analysis_cpu_s']:.0f}", f"{each:.1f}", f"{each / of_first:.2f}"]
        table.add_row(*cells)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
