"""Speed and memory of training: the step alone, the whole loop, the input alone, start-up. `make bench`.

Step and loop are timed in turn, several times, in one process, and compared pair by pair: machines are noisy, and a
ratio of neighbours says more than two speeds. Writes runs/bench/training.json beside the printed table.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.cli.train import default_cpu_devices
from icl_jax.config import Config, SnapshotConfig


@dataclass(frozen=True)
class Args:
    """What to measure."""

    configs: tuple[str, ...] = ("repeats-2l", "python-2l")
    """Configs whose model, batch and density of snapshots are used."""
    steps: int = 250
    """Steps per timing."""
    rounds: int = 3
    """Pairs of timings."""
    out: Path = Path("runs/bench/training.json")
    """Where the JSON goes."""


@dataclass
class _Clock:
    """A progress display that only notes when steps end."""

    first_s: float = 0.0
    last_s: float = 0.0
    icl: float | None = field(default=None)

    def update(self, step_done: int, loss: float, icl_score: float | None) -> None:
        self.last_s = time.perf_counter()
        if step_done == 1:
            self.first_s = self.last_s


def _step_alone(config: Config, corpus: Any, devices: list[Any], n_steps: int) -> float:
    """Tokens/s of dispatching and finishing steps on rows that are already at hand."""
    import jax

    from icl_jax.data import read_batches
    from icl_jax.train.parallel import ParallelStep

    parallel = ParallelStep(config, devices)
    state = parallel.init_state()
    with read_batches(corpus, seed=0, batch_size=config.train.batch_size, start_step=0) as batches:
        rows = [next(batches) for _ in range(n_steps + 1)]
    state, metrics = parallel.step(state, parallel.put_rows(rows[0]))
    jax.block_until_ready((state, metrics))
    start_s = time.perf_counter()
    for batch in rows[1:]:
        state, metrics = parallel.step(state, parallel.put_rows(batch))
        jax.block_until_ready(metrics)
    return n_steps * config.tokens_per_step / (time.perf_counter() - start_s)


# What the loop does besides stepping, each with all before it. The record cannot be left out.
_LOOPS = ("record", "snapshots", "probes", "W&B offline")


def _whole_loop(config: Config, corpus: Any, devices: list[Any], n_steps: int, n_more: int) -> float:
    """Tokens/s of `train` from its first step to its last, with `n_more` of what `_LOOPS` has after the record.

    Snapshots and probes are as dense as in the config.
    """
    from icl_jax.train.loop import train
    from icl_jax.train.start import open_or_create
    from icl_jax.train.stop import StopSignal
    from icl_jax.train.watch.tracker import make_tracker

    share = n_steps / config.train.n_steps
    n_snapshots = round((config.snapshots.n_linear + config.snapshots.n_log) * share) if n_more >= 1 else 0
    snapshots = SnapshotConfig(n_linear=n_snapshots, n_log=0, state_every_s=3600.0)
    # The first and the last lie outside the time that is taken.
    n_probes = 2 + round(config.probes.n_probes * share) if n_more >= 2 else 0
    short = replace(
        config,
        train=replace(config.train, n_steps=n_steps + 1),
        optimizer=replace(config.optimizer, warmup_steps=0),
        snapshots=snapshots,
        probes=replace(config.probes, n_probes=n_probes),
        tracker=replace(config.tracker, wandb="offline" if n_more >= 3 else "disabled"),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = open_or_create(str(Path(folder) / "run"), short, corpus)
        clock = _Clock()
        stop: Any = StopSignal()
        progress: Any = clock
        tracker = make_tracker(short, str(run.path), run.run_id, lambda _text: None, is_writer=True)
        train(run, corpus, devices, stop=stop, progress=progress, tracker=tracker)
        tracker.finish(0)
    return n_steps * config.tokens_per_step / (clock.last_s - clock.first_s)


def _input_alone(config: Config, corpus: Any, n_steps: int) -> float:
    """Tokens/s of making batches, thread and queue included."""
    from icl_jax.data import read_batches

    with read_batches(corpus, seed=0, batch_size=config.train.batch_size, start_step=0) as batches:
        for _ in range(8):
            next(batches)
        start_s = time.perf_counter()
        for _ in range(n_steps):
            next(batches)
        return n_steps * config.tokens_per_step / (time.perf_counter() - start_s)


def _start_up(config: str, *, compiled: bool) -> float:
    """Seconds from the start of `icl-jax train` to its first finished step, with or without the compilation cache."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": str(compiled).lower()}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from icl_jax.cli.main import main; main()", "train", config]
        command += ["--run", str(Path(folder) / "run"), "--tracker.wandb", "disabled", "--train.n-steps", "200000"]
        start_s = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step "):
                break
        seconds = time.perf_counter() - start_s
        child.kill()
        child.wait()
    return seconds


def _spread(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main(args: Args) -> None:
    """Measure, print the table and write the JSON."""
    process.keep_freed_memory()
    process.quiet_libraries()
    configs = {name: find_config(name)[1] for name in args.configs}
    process.configure_jax(min(default_cpu_devices(config, process.cpu_count()) for config in configs.values()))
    import jax

    from icl_jax.data import open_corpus
    from icl_jax.model.execution import resolve
    from icl_jax.rundir.checkpoints import quiet_orbax
    from icl_jax.train.environment import describe_start

    quiet_orbax()
    devices = jax.devices()
    results: dict[str, Any] = {"configs": {}}
    table = Table("median of rounds (spread)", *configs, box=None)
    rows: dict[str, list[str]] = {}
    for name, config in configs.items():
        corpus = open_corpus(config)
        found: dict[str, list[float]] = {"step": [], **{name: [] for name in _LOOPS}, "input": []}
        for _ in range(args.rounds + 1):
            found["step"].append(_step_alone(config, corpus, devices, args.steps))
            for n_more, part in enumerate(_LOOPS):
                found[part].append(_whole_loop(config, corpus, devices, args.steps, n_more))
            found["input"].append(_input_alone(config, corpus, args.steps))
        found = {key: values[1:] for key, values in found.items()}  # the first round compiles
        over_step = {part: [a / b for a, b in zip(found[part], found["step"], strict=True)] for part in found}
        ratios = {"loop with record / step": over_step["record"]}
        ratios |= {f"  and {part} / step": over_step[part] for part in _LOOPS[1:]}
        ratios["input / step"] = over_step["input"]
        cold = [_start_up(name, compiled=False) for _ in range(3)]
        warm = [_start_up(name, compiled=True) for _ in range(4)][1:]  # the first fills the cache
        execution = resolve(config.model, devices[0].platform, config.train, len(devices))
        results["configs"][name] = {
            "environment": describe_start(0, devices, sys.argv, execution),
            "tokens_per_s": found,
            "ratios": ratios,
            "cold_start_s": cold,
            "warm_start_s": warm,
        }
        rows.setdefault("step alone, k tokens/s", []).append(_spread([v / 1e3 for v in found["step"]]))
        rows.setdefault("whole loop, k tokens/s", []).append(_spread([v / 1e3 for v in found[_LOOPS[-1]]]))
        rows.setdefault("input alone, M tokens/s", []).append(_spread([v / 1e6 for v in found["input"]], 2))
        for key, values in ratios.items():
            rows.setdefault(key, []).append(_spread(values, 3))
        rows.setdefault("start to first step, cold, s", []).append(_spread(cold))
        rows.setdefault("start to first step, warm cache, s", []).append(_spread(warm))
    results["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for label, cells in rows.items():
        table.add_row(label, *cells)
    table.add_row("peak memory of this process, MB", f"{results['peak_memory_mb']:,.0f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))
    console = Console(width=shutil.get_terminal_size((120, 40)).columns)
    console.print(f"{len(devices)} x {devices[0].device_kind}, {args.rounds} rounds of {args.steps} steps")
    console.print(table)
    console.print(f"also in {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
