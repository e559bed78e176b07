"""What an intervention costs in a step: beside the step without any, in one process, in turns.

CPU seconds of the process, of blocks of steps; ratios are of neighbouring blocks. One device. Writes
runs/bench/interventions.json beside the printed table.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.config.interventions import read

CASES: dict[str, dict[str, Any]] = {
    "a pattern given in layer 0": {"at": "pattern", "layers": 0, "heads": 0, "pattern": "previous"},
    "keys of layer 1 read the embedding": {"at": "k_input", "layers": 1, "embedding": "own"},
    "results of a head of layer 1 are zero": {"what": "zero", "at": "result", "layers": 1, "heads": 0},
    "noise in the stream of layer 1": {"at": "resid_pre", "layers": 1, "noise": 0.1},
    "W_Q of layer 0 frozen": {"what": "freeze", "at": "W_Q", "layers": 0},
}


@dataclass(frozen=True)
class Args:
    """What to measure."""

    config: str = "repeats-2l"
    """Config of the run."""
    steps: int = 10
    """Steps of a block."""
    rounds: int = 11
    """Blocks of each."""
    out: Path = Path("runs/bench/interventions.json")
    """Where the JSON goes."""


def costs(args: Args) -> dict[str, dict[str, float]]:
    """Of each case the CPU milliseconds of a step, and the ratio to the step without: median, quartiles."""
    import jax

    from icl_jax.train.interventions import Interventions
    from icl_jax.train.parallel import ParallelStep

    plain = find_config(args.config)[1]
    shape = (plain.train.batch_size, plain.model.n_ctx + 1)
    tokens = np.random.default_rng(0).integers(0, plain.model.vocab_size, shape, dtype=np.int32)
    found = {}
    for name, table in CASES.items():
        config = replace(plain, intervene=read([table]))
        parallel, interventions = ParallelStep(config, jax.devices()[:1]), Interventions(config, None)
        rows, state = parallel.put_rows(tokens), parallel.init_state()
        steps: tuple[Callable[..., Any], ...] = parallel.step, parallel.under(interventions.at(0), interventions)
        ms = np.zeros((args.rounds + 1, 2))
        for i in range(args.rounds + 1):  # the first compiles
            for j, step in enumerate(steps):
                start = time.process_time()
                for _ in range(args.steps):
                    state, metrics = step(state, rows)
                jax.block_until_ready(metrics)
                ms[i, j] = 1e3 * (time.process_time() - start) / args.steps
        low, middle, high = np.quantile(ms[1:, 1] / ms[1:, 0], (0.25, 0.5, 0.75))
        without, under = np.median(ms[1:], axis=0)
        found[name] = {"ms": under, "without_ms": without, "ratio": middle, "low": low, "high": high}
    return {name: {key: float(x) for key, x in one.items()} for name, one in found.items()}


def main(args: Args) -> None:
    """Measure, print and write."""
    process.keep_freed_memory()
    process.configure_jax(1)
    found = costs(args)
    table = Table("", "CPU ms a step", "without it", "ratio (quartiles)", box=None)
    for name, one in found.items():
        ratio = f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})"
        table.add_row(name, f"{one['ms']:.1f}", f"{one['without_ms']:.1f}", ratio)
    Console().print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({"config": args.config, **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
