"""Training steps beside PyTorch's and TransformerLens's, in turn, in one go: `make bench-peers`, `make bench-gpu`.

Every contender lives in a process of its own, with all cores, and waits while the others work. A round times each of
them on the same rows; ratios are of neighbours in one round. Before anything is timed the first steps' losses are
compared: who computes something else is not in the race. Writes runs/bench/peers-DEVICE.json beside the printed table.
"""

import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import MAKERS
from benchmarks.peak import gpu_gflops, gpu_name, matmul_gflops
from benchmarks.shapes import SETS
from icl_jax import process
from icl_jax.config import Config, ModelConfig
from icl_jax.plan.flops import step_flops

OURS = "icl_jax"
# With every position's loss, which icl_jax always records and the peers do on request.
RECORDED = " + record"
# Tokens by CPU second, of the whole process.
CPU = ", CPU"
# Relative, of the mean loss at each of the first steps. TransformerLens predicts one token a row less.
AGREES = {"float32": 1e-4, "bfloat16": 5e-3}


@dataclass(frozen=True)
class Args:
    """What to measure."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where."""
    shapes: Literal["cpu", "gpu", "llama", "tiny", ""] = ""
    """Which set of models; left out: the device's own."""
    only: str = ""
    """One shape, by a part of its name."""
    rounds: int = 3
    """Timings of each contender."""
    seconds: float = 2.0
    """About how long one timing takes."""
    contenders: tuple[str, ...] = tuple(MAKERS)
    """Whom to time; of those that train the shape."""
    records: bool = True
    """Time the others with every position's loss too."""
    out: str = ""
    """Where the JSON goes; left out: runs/bench/peers-DEVICE.json."""


class Timed(NamedTuple):
    """Some steps."""

    seconds: float
    losses: list[float]
    """Of these, and of one before them."""
    cpu_s: float


def _serve(connection: Connection, name: str, config: Config, device: str) -> None:
    """Body of a contender's process: build it, then run steps on request."""
    process.keep_freed_memory()  # for all: PyTorch's steps gain by it too
    process.quiet_libraries()
    try:
        torch_device = "cuda" if device == "gpu" else device
        made = MAKERS[name.removesuffix(RECORDED)](config, device if name == OURS else torch_device, RECORDED in name)
    except ImportError as error:
        connection.send(error)
        return
    connection.send(None)
    while (request := connection.recv()) is not None:
        seed, n_steps = request
        first, *batches = random_rows(config, seed, 1 + n_steps)
        losses = made.run([first])  # takes back the caches, and a GPU's memory, that others had in between
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        losses += made.run(batches)
        connection.send(Timed(time.perf_counter() - start_s, losses, time.process_time() - start_cpu_s))
        made.release()


def random_rows(config: Config, seed: int, n_steps: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (n_steps, config.train.batch_size, config.model.n_ctx + 1)
    return list(rng.integers(0, config.model.vocab_size, shape, dtype=np.int32))


class Worker:
    """A contender in its own process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def wait(self) -> None:
        """Return when it is built. Raises ImportError if what it needs is not installed."""
        if (error := self._connection.recv()) is not None:
            raise error

    def run(self, seed: int, n_steps: int) -> Timed:
        """Time `n_steps` steps."""
        self._connection.send((seed, n_steps))
        answer: Timed = self._connection.recv()
        return answer


@contextmanager
def worker(name: str, config: Config, device: str) -> Iterator[Worker]:
    """Start a contender."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_serve, args=(theirs, name, config, device), daemon=True)
    child.start()
    theirs.close()
    try:
        yield Worker(ours)
        ours.send(None)
    finally:
        child.join(timeout=10)
        child.kill()


def check_agreement(losses: dict[str, list[float]], config: Config) -> None:
    """Raises SystemExit if a contender's losses at the first steps are not ours."""
    tolerance = AGREES[config.model.compute_dtype]
    for name, theirs in losses.items():
        # One token a row less moves the mean over random tokens by its sampling error; tests/parity has the logits.
        allowed = 0.02 if name.startswith("TransformerLens") else tolerance
        worst = max(abs(a - b) / b for a, b in zip(theirs, losses[OURS], strict=True))
        if worst > allowed:
            raise SystemExit(
                f"{name} trains something else: its losses are off by {worst:.1e}, {theirs}, {losses[OURS]}"
            )


def _trains(name: str, model: ModelConfig) -> bool:
    if name == "TransformerLens":
        return not model.smeared_keys
    return name == OURS or (name == "LlamaForCausalLM") == (model.positions == "rotary")


def time_shape(config: Config, args: Args) -> dict[str, list[float]]:
    """Tokens/s of each contender, round by round, also by CPU seconds; beside them the machine's peak in GFLOP/s."""
    names = [name for name in args.contenders if _trains(name, config.model)]
    names += [name + RECORDED for name in names if name != OURS and args.records]
    if OURS not in names:
        raise SystemExit(f"--contenders must have {OURS}")
    with ExitStack() as stack:
        workers = {name: stack.enter_context(worker(name, config, args.device)) for name in names}
        for each in workers.values():
            each.wait()
        check_agreement({name: each.run(0, 3).losses for name, each in workers.items()}, config)
        n_steps = {}
        for name, each in workers.items():
            each.run(1, 5)  # torch.compile's second compilation, caches, clocks
            n_steps[name] = max(3, round(args.seconds / (each.run(2, 5).seconds / 5)))
        found: dict[str, list[float]] = {name + kind: [] for name in names for kind in ("", CPU)}
        peak: list[float] = []
        for seed in range(args.rounds):
            for name, each in workers.items():
                timed = each.run(10 + seed, n_steps[name])
                for kind, seconds in (("", timed.seconds), (CPU, timed.cpu_s)):
                    found[name + kind].append(n_steps[name] * config.tokens_per_step / seconds)
            peak.append(matmul_gflops() if args.device == "cpu" else gpu_gflops())
    return found | {"peak": peak}


def spread(values: list[float], digits: int = 1) -> str:
    """Median, least and greatest."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main(args: Args) -> None:
    """Measure, print a table a shape and write the JSON."""
    console = Console()
    results: dict[str, Any] = {"command": sys.argv, "shapes": {}}
    if args.device == "gpu":
        results["gpu"] = gpu_name()
        console.print(results["gpu"])
    for shape, config in SETS[args.shapes or args.device].items():
        if args.only not in shape:
            continue
        found = {name: values for name, values in time_shape(config, args).items() if not name.endswith(CPU)}
        peak = found.pop("peak")
        ratios = {
            name: [mine / theirs for mine, theirs in zip(found[OURS], values, strict=True)]
            for name, values in found.items()
        }
        per_token = step_flops(config) / config.tokens_per_step
        shares = {
            name: [v * per_token / top / 1e9 for v, top in zip(values, peak, strict=True)]
            for name, values in found.items()
        }
        results["shapes"][shape] = {
            "tokens_per_s": found,
            "ours_over_theirs": ratios,
            "flops_per_token": per_token,
            "peak_gflops": peak,
            "share_of_peak": shares,
        }
        top = f"% of {statistics.median(peak):,.0f} GFLOP/s"
        table = Table(f"{shape}, {per_token / 1e6:.2f} MFLOP a token", "k tokens/s", "icl_jax / theirs", top, box=None)
        for name, values in found.items():
            ratio = "" if name == OURS else spread(ratios[name], 2)
            table.add_row(name, spread([v / 1e3 for v in values]), ratio, spread([100 * v for v in shares[name]], 0))
        console.print(table)
    out = Path(args.out or f"runs/bench/peers-{args.device}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    console.print(f"also in {out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
