"""Many members of one small model on one device, beside PyTorch's `vmap` and as many processes.

`python -m benchmarks.members_peers --device gpu`. Steps alone, on the same rows, after compilation; each contender in a
process of its own, one after the other. The losses of the first steps are compared before anything is timed. Writes
runs/bench/members-peers-DEVICE.json beside the printed table.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.peak import gpu_name
from benchmarks.peers import random_rows
from icl_jax import process
from icl_jax.config import Config, MembersConfig, load_config
from icl_jax.config.builtin import config_file

# Relative, of a member's mean loss at each of the first steps.
AGREES = 1e-4


@dataclass(frozen=True)
class Args:
    """What to measure."""

    device: Literal["cpu", "gpu"] = "cpu"
    """Where."""
    config: str = "repeats-2l"
    """The model and its batch."""
    members: tuple[int, ...] = (1, 8, 64, 256, 1000)
    """How many; PyTorch takes those up to `peers_to`."""
    peers_to: int = 64
    """The largest number of members that PyTorch trains, and the number of its processes."""
    steps: int = 50
    """Steps of a timing."""
    rounds: int = 3
    """Timings."""
    patience_s: float = 900
    """How long a contender may take in all, compilation included; one that takes longer is said to."""


def _ours(config: Config, device: str) -> Callable[[list[np.ndarray]], np.ndarray]:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    process.configure_jax(1)
    import jax

    from icl_jax.train.members import MemberStep, joined

    step = MemberStep(config, jax.devices(device)[:1])
    state = step.init_state()

    def run(batches: list[np.ndarray]) -> np.ndarray:
        nonlocal state
        recorded = []
        for rows in batches:
            state, metrics = step.step(state, step.put_rows(rows))
            recorded.append(metrics)
        return np.stack([joined(metrics).loss_T for metrics in recorded])

    return run


def _initial(config: Config) -> dict[str, np.ndarray]:
    """Every member's parameters, as icl_jax draws them."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from icl_jax.model.params import init_params

    draw = jax.jit(lambda seed: init_params(config.model, seed))
    drawn = [draw(np.uint32(seed)) for seed in (config.member(k).train.seed for k in range(len(config.members)))]
    return {name: np.stack([np.asarray(each[name]) for each in drawn]) for name in drawn[0]}


def _torch(config: Config, device: str, *, is_compiled: bool) -> Callable[[list[np.ndarray]], np.ndarray]:
    import torch

    from benchmarks.contenders.pytorch_members import PyTorchMembers

    torch.set_num_threads(process.cpu_count())
    name = "cuda" if device == "gpu" else "cpu"
    return PyTorchMembers(config, name, _initial(config), is_compiled=is_compiled).run


def _serve(queue: "Queue[Any]", name: str, config: Config, args: Args) -> None:
    """Time one contender and send its seconds a step, the losses of the first steps, or why there are none."""
    try:
        if name == "icl_jax":
            run = _ours(config, args.device)
        else:
            run = _torch(config, args.device, is_compiled=name == "torch.compile + vmap")
        first = run(random_rows(config, 0, 3)).mean(axis=-1)  # compiles
        run(random_rows(config, 1, 3))
        rows = random_rows(config, 2, args.steps)
        seconds = []
        for _ in range(args.rounds):
            start_s = time.perf_counter()
            run(rows)
            seconds.append((time.perf_counter() - start_s) / args.steps)
        queue.put((seconds, first))
    except Exception as error:
        queue.put(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")


def _one_process(barrier: Any, queue: "Queue[Any]", config: Config, args: Args) -> None:
    """A run of its own, as a job of one member; starts when all are built."""
    import torch

    torch.set_num_threads(1)
    run = _torch(config, args.device, is_compiled=False)
    torch.set_num_threads(1)
    run(random_rows(config, 0, 3))
    barrier.wait()
    start_s = time.perf_counter()
    run(random_rows(config, 2, args.steps))
    queue.put((start_s, time.perf_counter()))


def time_processes(config: Config, args: Args) -> float:
    """Seconds a step of all, of as many processes as there are members: from the first's start to the last's end."""
    context = multiprocessing.get_context("spawn")
    queue: Queue[Any] = context.Queue()
    barrier = context.Barrier(args.peers_to)
    children = []
    for seed in range(args.peers_to):
        member = replace(config, members=MembersConfig(seeds=f"{seed}..{seed}"))
        children.append(context.Process(target=_one_process, args=(barrier, queue, member, args), daemon=True))
        children[-1].start()
    times = [queue.get(timeout=args.patience_s) for _ in children]
    for child in children:
        child.join()
    return (max(end for _, end in times) - min(start for start, _ in times)) / args.steps


def time_contender(name: str, config: Config, args: Args) -> Any:
    context = multiprocessing.get_context("spawn")
    queue: Queue[Any] = context.Queue()
    child = context.Process(target=_serve, args=(queue, name, config, args), daemon=True)
    child.start()
    try:
        found = queue.get(timeout=args.patience_s)
        child.join(timeout=20)
    except Empty:
        found = f"not ready after {args.patience_s:.0f} s"
    child.kill()
    return found


def main(args: Args) -> None:
    """Measure, print a table and write the JSON."""
    console = Console()
    where = gpu_name() if args.device == "gpu" else f"{process.cpu_count()} cores"
    results: dict[str, Any] = {"command": sys.argv, "where": where, "seconds_a_step": {}}
    plain = load_config(config_file(args.config))
    table = Table(f"{args.config}, {where}", "members", "ms a step", "µs a member", box=None)
    for n in args.members:
        config = replace(plain, members=MembersConfig(seeds=f"0..{n - 1}"))
        names = ["icl_jax"] + (["vmap", "torch.compile + vmap"] if n <= args.peers_to else [])
        losses = None
        for name in names:
            found = time_contender(name, config, args)
            print(name, n, found, flush=True)
            if isinstance(found, str):
                table.add_row(name, str(n), found)
                results["seconds_a_step"][f"{name} {n}"] = found
                continue
            seconds, first = found
            losses = first if losses is None else losses
            off = float(np.max(np.abs(first - losses) / losses))
            if off > AGREES:
                raise SystemExit(f"{name} trains something else: its losses are off by {off:.1e}")
            best = min(seconds)
            results["seconds_a_step"][f"{name} {n}"] = seconds
            table.add_row(name, str(n), f"{best * 1e3:.2f}", f"{best * 1e6 / n:.0f}")
    if args.peers_to > 1:
        seconds = time_processes(plain, args)
        results["seconds_a_step"][f"processes {args.peers_to}"] = seconds
        table.add_row(
            "PyTorch, processes", str(args.peers_to), f"{seconds * 1e3:.2f}", f"{seconds * 1e6 / args.peers_to:.0f}"
        )
    console.print(table)
    out = Path(f"runs/bench/members-peers-{args.device}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args))
