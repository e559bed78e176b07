"""Where the time of a step goes, by kind of operation, from a profiler's trace. Part of `make bench`.

Every operation of the compiled program is put into a kind by what its instruction, and the computation that it calls,
does; a loop is the sum of its parts. Times of several devices are added up, so that what is left of
devices x wall-clock time is waiting and dispatch.
"""

import glob
import gzip
import json
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.shapes import SETS
from icl_jax import process
from icl_jax.config import Config
from icl_jax.plan.flops import step_flops

# In this order: a fusion with a product and an exponential counts as a product. What has others inside is left out.
_KINDS = (
    ("loops", r" (while|call|conditional)\("),
    ("matrix products", r" dot\(| custom-call\(.*(matmul|dot)"),
    ("between devices", r" (all-reduce|all-gather|reduce-scatter)[-a-z]*\("),
    ("look-ups", r" (gather|scatter)\("),
    ("exponentials", r" (exponential|log|tanh|logistic)\("),
    ("sums over an axis", r" reduce\("),
    ("element by element", r" (multiply|add|subtract|divide|select|maximum|rsqrt|sqrt)\("),
)
_REST = "copies"


@dataclass(frozen=True)
class Args:
    """What to look at."""

    shapes: str = "cpu"
    """Which set of models: cpu, gpu or tiny."""
    steps: int = 20
    """Steps in the trace."""
    out: Path = Path("runs/bench/breakdown.json")
    """Where the JSON goes."""


def kinds_of(hlo: str) -> dict[str, str]:
    """Instruction name to kind, for every instruction of a compiled program's text."""
    bodies: dict[str, list[str]] = {}
    current = ""
    for line in hlo.splitlines():
        if found := re.match(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = found.group(1)
        bodies.setdefault(current, []).append(line)
    kinds = {}
    for lines in bodies.values():
        for line in lines:
            if not (found := re.match(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", line)):
                continue
            text = found.group(2)
            if called := re.search(r" (?:fusion|custom-call)\(.*(?:calls|to_apply)=%?([\w.\-]+)", text):
                text = "\n".join(bodies.get(called.group(1), [text]))
            kinds[found.group(1)] = next((kind for kind, pattern in _KINDS if re.search(pattern, text)), _REST)
    return kinds


def breakdown(config: Config, n_steps: int) -> dict[str, Any]:
    """Milliseconds a step of each kind, summed over devices, and of the wall clock."""
    import jax

    from icl_jax.train.parallel import ParallelStep

    devices = jax.devices()
    parallel = ParallelStep(config, devices)
    kinds = kinds_of(parallel.lower().compile().as_text() or "")
    state = parallel.init_state()
    shape = (config.train.batch_size, config.model.n_ctx + 1)
    rows = parallel.put_rows(np.random.default_rng(0).integers(0, config.model.vocab_size, shape, dtype=np.int32))

    def steps(state: Any, n: int) -> Any:
        for _ in range(n):
            state, metrics = parallel.step(state, rows)
            jax.block_until_ready(metrics)
        return state

    state = steps(state, 3)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start_s = time.perf_counter()
            steps(state, n_steps)
            wall_ms = (time.perf_counter() - start_s) / n_steps * 1e3
        (file,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        with gzip.open(file) as opened:
            events = json.load(opened)["traceEvents"]
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {}):
            spent[kinds.get(event["args"]["hlo_op"], _REST)] += event["dur"] / 1e3 / n_steps
    del spent["loops"]
    return {"wall_ms": wall_ms, "n_devices": len(devices), "ms": dict(spent.most_common())}


def main(args: Args) -> None:
    """Trace each model's step, print the table and write the JSON."""
    process.keep_freed_memory()
    process.quiet_libraries()
    process.configure_jax(process.cpu_count())
    results = {}
    for name, config in SETS[args.shapes].items():
        results[name] = found = breakdown(config, args.steps)
        total = found["wall_ms"] * found["n_devices"]
        gflops = step_flops(config) / found["wall_ms"] / 1e6
        table = Table(f"{name}: {found['wall_ms']:.1f} ms a step, {gflops:,.0f} GFLOP/s", "% of the time", box=None)
        for kind, ms in found["ms"].items():
            table.add_row(kind, f"{100 * ms / total:.0f}")
        table.add_row("waiting, dispatch", f"{100 * (1 - sum(found['ms'].values()) / total):.0f}")
        Console().print(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Args))
