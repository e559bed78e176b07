"""Sizes at their ends: a start of 2e9 steps, verify of many and large snapshots, a report of 300 runs.

Part of `make bench`. The runs are copies of one that has been analyzed, of other configs and seeds as far as they say:
`python -m benchmarks.sizes --run runs/repeats-2l`.
"""

import hashlib
import re
import resource
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from etils import epath

from icl_jax.config import parse_config
from icl_jax.model.params import param_shapes
from icl_jax.rundir import RunDir, probe_steps, snapshot_steps
from icl_jax.rundir.checkpoints import saved_steps
from icl_jax.rundir.record import Record, load_record
from icl_jax.rundir.verify import problems

_SEEDS = 3


@dataclass(frozen=True)
class Args:
    """What to measure."""

    run: str = ""
    """An analyzed run to make a report of copies of; empty: none."""
    n_runs: int = 300
    """How many."""
    n_steps: int = 2_000_000_000
    """Steps of the run that is begun."""


def begin(n_steps: int, folder: Path) -> str:
    """Lay out the record and the schedules of a run, and open it: what grows with its length."""
    start_s = time.perf_counter()
    config = parse_config(f"[train]\nn_steps = {n_steps}")
    path = epath.Path(folder) / "record.zarr"
    Record.create(path, config, {})
    n_scheduled = len(snapshot_steps(config)) + len(probe_steps(config))
    load_record(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    took_s = time.perf_counter() - start_s
    return f"start of {n_steps:,} steps: {took_s:.1f} s, {peak / 1e6:.0f} MB at most, {n_scheduled} scheduled"


def copies(run: str, n_runs: int, folder: Path) -> list[str]:
    """Runs under ids of their own, three seeds of each learning rate; snapshots are linked."""
    source = Path(RunDir.open(run).path)
    paths = []
    for i in range(n_runs):
        path = folder / f"run{i}"
        shutil.copytree(source, path, ignore=shutil.ignore_patterns("snapshots", "state", "analysis_parts", "report"))
        (path / "snapshots").symlink_to((source / "snapshots").resolve())
        for name, pattern, new in (
            ("environment.json", r'"run_id": "\w+"', f'"run_id": "{secrets.token_hex(4)}"'),
            ("config.toml", r"\bseed = \d+", f"seed = {i % _SEEDS}"),
            ("config.toml", r"\blr = \S+", f"lr = {1e-3 * (1 + i // _SEEDS)}"),
        ):
            text = (path / name).read_text(encoding="utf-8")
            (path / name).write_text(re.sub(pattern, new, text), encoding="utf-8")
        paths.append(str(path))
    return paths


def report(run: str, n_runs: int, folder: Path) -> str:
    """A report of copies: CPU time a run, and the size of the page."""
    paths = copies(run, n_runs, folder)
    from icl_jax.report import write_report

    start_s = time.process_time()
    page = write_report(paths, folder / "report")
    took_s = time.process_time() - start_s
    size_mb = page.stat().st_size / 1e6
    return f"report of {n_runs} runs: {took_s / n_runs:.2f} CPU-seconds a run, a page of {size_mb:.1f} MB"


def verify(run: RunDir) -> str:
    """Time of `icl-jax verify`, its start-up apart, beside that of reading alone: Orbax's, and of plain bytes."""
    paths = [path / str(step) for path in (run.path / "snapshots", run.path / "state") for step in saved_steps(path)]
    orbax_load(paths[0])  # Orbax and JAX start
    list(problems(run))
    files = [path for path in Path(run.path).rglob("*") if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)

    def took(work: Callable[[], object]) -> str:
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        work()
        return f"{time.process_time() - cpu_s:.2f} ({time.perf_counter() - wall_s:.2f})"

    whole = took(lambda: list(problems(run)))
    orbax = took(lambda: [orbax_load(path) and None for path in paths])
    plain = took(lambda: [hashlib.sha256(path.read_bytes()).digest() for path in files])
    what = f"{len(paths)} snapshots and states, {n_bytes / 1e6:.0f} MB in {len(files)} files"
    reading = f"to load them by Orbax {orbax}, to read and hash the files {plain}"
    return f"verify of {what}: {whole} CPU-seconds (seconds); {reading}"


def orbax_load(path: epath.Path) -> Any:
    """What Orbax restores, as NumPy arrays."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata: Any = checkpointer.metadata(path)
        names = list(metadata.item_metadata.tree)
        arrays = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
        args = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=arrays)
        return checkpointer.restore(path, args=args)


def random_run(path: str, d_model: int, vocab_size: int, n_snapshots: int) -> RunDir:
    """Snapshots of random parameters."""
    config = parse_config(
        f"[model]\nd_model = {d_model}\nvocab_size = {vocab_size}\n[snapshots]\nn_linear = 1\nn_log = 0"
    )
    run = RunDir.create(path, config, corpus_sha256="0" * 64)
    draw = np.random.default_rng(0)
    for step in range(n_snapshots):
        shapes = param_shapes(config.model).items()
        run.save_snapshot(step, {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes})
    return run


def main(args: Args) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        print(begin(args.n_steps, Path(folder)))
        for d_model, vocab_size, n_snapshots in ((64, 256, 200), (2048, 32_768, 1)):
            path = Path(folder) / f"verified{n_snapshots}"
            print(verify(random_run(str(path), d_model, vocab_size, n_snapshots)))
            shutil.rmtree(path)
        if args.run:
            print(report(args.run, args.n_runs, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Args))
