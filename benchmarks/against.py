"""This checkout's training steps, analysis or whole `make reproduce` beside another checkout's, in turn, in one go.

    python -m benchmarks.against ../other                # training: four shapes, about five minutes
    python -m benchmarks.against ../other --reproduce    # fresh clones of both, installation included
    python -m benchmarks.against ../other --analyze RUN  # 30 snapshots of a run that both can read, from nothing

Each checkout runs in processes of its own, with its own .venv where it has one, and its own benchmarks/ shapes. Speeds
are compared pair by pair, and who is first changes from pair to pair: machines are noisy, and a ratio of neighbours
says more than two speeds. Exits with status 1 where a median is below `--at-least`. Writes runs/bench/against.json.
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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from benchmarks import peers
from benchmarks.shapes import SETS

HERE = Path(__file__).resolve().parents[1]
# What a checkout's process runs: that checkout's own step on its own shapes.
_PROGRAM = """
import sys
from multiprocessing.connection import Client
from benchmarks import peers, shapes
_, address, kind, shape, device = sys.argv
peers._serve(Client(address), peers.OURS, shapes.SETS[kind][shape], device)
"""


@dataclass(frozen=True)
class Args:
    """What to compare with."""

    other: Annotated[Positional[Path], tyro.conf.arg(metavar="CHECKOUT")]
    """Folder of the other checkout."""
    reproduce: bool = False
    """Time `make reproduce` on fresh clones of both commits, with empty caches, in place of training steps."""
    analyze: Path | None = None
    """Time `icl-jax analyze` of a copy of this run, which the older of both can read, in place of training steps."""
    device: Literal["cpu", "gpu"] = "cpu"
    """Where to train."""
    shapes: Literal["cpu", "gpu", "tiny", ""] = ""
    """Which set of models; left out: the device's own."""
    only: str = ""
    """One shape, by a part of its name."""
    rounds: int = 0
    """Pairs of timings; 0: nine of training, one of anything else."""
    seconds: float = 2.0
    """About how long one timing of training takes."""
    at_least: float = 0.99
    """The least median ratio of speeds, ours over theirs, that passes."""
    out: Path = Path("runs/bench/against.json")
    """Where the JSON goes."""


@contextmanager
def _trainer(checkout: Path, shape: str, args: Args) -> Iterator[peers.Worker]:
    """A process that runs a checkout's steps on request."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    with tempfile.TemporaryDirectory() as folder, Listener(f"{folder}/socket", "AF_UNIX") as listener:
        kind = args.shapes or args.device
        command = [_python(checkout), "-c", _PROGRAM, f"{folder}/socket", kind, shape, args.device]
        child = subprocess.Popen(command, cwd=checkout, env=environment)
        try:
            with listener.accept() as connection:
                yield peers.Worker(connection)
                connection.send(None)
        finally:
            child.kill()
            child.wait()


def _train(shape: str, args: Args) -> dict[str, list[float]]:
    """Tokens/s of both on a shape, pair by pair. Raises SystemExit if they do not train the same."""
    config = SETS[args.shapes or args.device][shape]
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(_trainer(checkout, shape, args))
            for name, checkout in (("ours", HERE), ("theirs", args.other.resolve()))
        }
        for each in workers.values():
            each.wait()
        # By place: an older checkout answers with a plain tuple.
        losses = {name: each.run(0, 3)[1] for name, each in workers.items()}
        peers.check_agreement({peers.OURS: losses["ours"], "the other checkout": losses["theirs"]}, config)
        n_steps = max(3, round(args.seconds / (workers["ours"].run(2, 5)[0] / 5)))
        for i in range(1 + (args.rounds or 9)):
            for name in sorted(workers, reverse=i % 2 == 1):
                seconds = workers[name].run(10 + i, n_steps)[0]
                found[name].append(n_steps * config.tokens_per_step / seconds)
    return {name: speeds[1:] for name, speeds in found.items()}  # the first pair warms up


def _command(command: list[str | Path], cwd: Path, cache: Path, **environment: str) -> tuple[float, float]:
    """Wall and CPU seconds of a command that finds no package and no compiled program of ours."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PIP_CACHE_DIR", "UV_CACHE_DIR")
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start_s = time.perf_counter()
    env = {**kept, "XDG_CACHE_HOME": str(cache), **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{cwd}: {command} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _reproduce(checkout: Path, _args: Args) -> tuple[float, float]:
    """Wall and CPU seconds of `make reproduce` on a fresh clone, installation included."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", checkout, clone], check=True)
        return _command(["make", "reproduce"], clone, Path(folder) / "cache")


def _analyze(checkout: Path, args: Args) -> tuple[float, float]:
    """Wall and CPU seconds of all measurements of 30 snapshots, start of the program and compilation included."""
    assert args.analyze is not None
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        shutil.copytree(args.analyze, run, ignore=shutil.ignore_patterns("analysis*"))
        program = "from icl_jax.cli.main import main; main()"
        command: list[str | Path] = [_python(checkout), "-c", program, "analyze", run, "--snapshots", "30"]
        return _command(command, checkout, Path(folder) / "cache", PYTHONPATH=str(checkout))


def _python(checkout: Path) -> str:
    own = checkout / ".venv" / "bin" / "python"
    return str(own if own.exists() else sys.executable)


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=9"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(args: Args) -> None:
    """Measure, print a table and write the JSON. Raises SystemExit(1) where this checkout is too slow."""
    console = Console(width=max(100, Console().width))
    commits = {"ours": _commit(HERE), "theirs": _commit(args.other)}
    console.print(f"{commits['ours']} against {commits['theirs']}")
    results: dict[str, Any] = {"command": sys.argv, "commits": commits}
    if args.reproduce or args.analyze:
        what, measure = ("make reproduce", _reproduce) if args.reproduce else ("icl-jax analyze", _analyze)
        table = Table(what, "ours", "theirs", "theirs / ours", box=None)
        pairs = [(measure(HERE, args), measure(args.other.resolve(), args)) for _ in range(args.rounds or 1)]
        for i, name in enumerate(("wall, s", "CPU, s")):
            ours, theirs = ([pair[k][i] for pair in pairs] for k in (0, 1))
            ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
            results[name] = {"ours": ours, "theirs": theirs}
            table.add_row(name, peers.spread(ours, 0), peers.spread(theirs, 0), peers.spread(ratios, 2))
        slowest = 1.0
    else:
        table = Table("k tokens/s", "ours", "theirs", "ours / theirs", box=None)
        slowest = float("inf")
        for shape in (shape for shape in SETS[args.shapes or args.device] if args.only in shape):
            found = results[shape] = _train(shape, args)
            ratios = [a / b for a, b in zip(found["ours"], found["theirs"], strict=True)]
            slowest = min(slowest, statistics.median(ratios))
            speeds = [peers.spread([v / 1e3 for v in found[name]]) for name in ("ours", "theirs")]
            table.add_row(shape, *speeds, peers.spread(ratios, 3))
    console.print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))
    console.print(f"also in {args.out}")
    if slowest < args.at_least:
        raise SystemExit(f"slower than {commits['theirs']}: a median ratio of {slowest:.3f}, less than {args.at_least}")


if __name__ == "__main__":
    main(tyro.cli(Args))
