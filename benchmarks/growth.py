"""How the cost of a step grows with context, vocabulary, layers and batch: tokens/s and memory. Part of `make bench`.

One thing is changed at a time from the middle of each range. Memory is the compiler's own count for one device: what
the step allocates beside parameters, optimiser state and rows.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import CPU
from icl_jax import process
from icl_jax.config import Config
from icl_jax.plan.flops import step_flops

BASE = CPU["2 layers, d 128"]
RANGES: dict[str, tuple[int, ...]] = {
    "n_ctx": (128, 256, 512, 1024, 2048),
    "vocab_size": (64, 256, 1024, 4096, 16384),
    "n_layers": (1, 2, 4, 8),
    "batch_size": (4, 8, 16, 32, 64, 128),
}


@dataclass(frozen=True)
class Args:
    """What to measure."""

    seconds: float = 2.0
    """About how long one timing takes; the best of three counts."""
    out: Path = Path("runs/bench/growth.json")
    """Where the JSON goes."""


def changed(config: Config, name: str, value: int) -> Config:
    """The base with one size changed; longer rows are fewer, so that a step has as many tokens."""
    if name == "batch_size":
        return replace(config, train=replace(config.train, batch_size=value))
    if name == "n_ctx":
        rows = config.train.batch_size * config.model.n_ctx // value
        config = replace(config, train=replace(config.train, batch_size=rows))
    sizes: dict[str, Any] = {name: value}
    return replace(config, model=replace(config.model, **sizes))


def measure(config: Config, seconds: float) -> dict[str, float]:
    """Tokens/s, GFLOP/s, and MB of temporaries a device."""
    import jax

    from icl_jax.train.parallel import ParallelStep

    parallel = ParallelStep(config, jax.devices())
    memory = parallel.lower().compile().memory_analysis()
    state = parallel.init_state()
    shape = (config.train.batch_size, config.model.n_ctx + 1)
    rows = np.random.default_rng(0).integers(0, config.model.vocab_size, shape, dtype=np.int32)
    best_s, spent_s, n_done = float("inf"), 0.0, 0
    while n_done < 4 or (spent_s < 3 * seconds and n_done < 200):
        start_s = time.perf_counter()
        state, metrics = parallel.step(state, parallel.put_rows(rows))
        jax.block_until_ready(metrics)
        took_s = time.perf_counter() - start_s
        n_done += 1
        if n_done > 2:  # the first compiles
            best_s, spent_s = min(best_s, took_s), spent_s + took_s
    return {
        "tokens_per_s": config.tokens_per_step / best_s,
        "gflops": step_flops(config) / best_s / 1e9,
        "temporaries_mb": memory.temp_size_in_bytes / 1e6 if memory else float("nan"),
    }


def main(args: Args) -> None:
    """Measure, print the table and write the JSON."""
    process.keep_freed_memory()
    process.quiet_libraries()
    process.configure_jax(process.cpu_count())
    table = Table("", "", "k tokens/s", "GFLOP/s", "temporaries a device, MB", box=None)
    results: dict[str, Any] = {}
    for name, values in RANGES.items():
        for value in values:
            found = measure(changed(BASE, name, value), args.seconds)
            results.setdefault(name, {})[value] = found
            cells = (found["tokens_per_s"] / 1e3, found["gflops"], found["temporaries_mb"])
            table.add_row(name if value == values[0] else "", f"{value:,}", *(f"{cell:,.1f}" for cell in cells))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Args))
