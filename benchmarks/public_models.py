"""Models of others beside the tools that are usual for them: `make bench-public`.

- analysis: all head scores, losses and composition of a snapshot, beside TransformerLens.
- ablation: the loss without each head, beside TransformerLens's hooks. A head costs TransformerLens a forward pass
  wherever it stands, and us what lies after it: those of a few layers are timed and the others reckoned, `--layers`.
- import: a checkpoint into a run directory, beside reading its bytes; neither is in the page cache.
- training: a small Llama beside torch.compile of LlamaForCausalLM of `transformers`.

Each side has a process of its own, and the sides of a round follow each other. Wall seconds are what a user waits on
free cores, CPU seconds (user and system) hold on a machine that others use too, with `--threads 1`. Both sides'
numbers are compared. The model is that of `make real-model`. Writes runs/bench/public-models.json beside the table.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.contenders.public_model import (
    ABLATED_ROWS,
    SCORES,
    Found,
    export_series,
    layers_between,
    our_ablation,
    our_analysis,
    our_import,
    prepare,
    reading,
    their_ablation,
    their_analysis,
)  # fmt: skip
from icl_jax import process

Part = Literal["analysis", "ablation", "import", "training"]


@dataclass(frozen=True)
class Args:
    """What to measure."""

    run: Path = Path("runs/smollm2-135m")
    """Run directory of an imported model: what `make real-model` makes."""
    only: tuple[Part, ...] = ("analysis", "ablation", "import", "training")
    """Which rows of the table."""
    rows: int = 64
    """Held-out rows that losses are taken on."""
    layers: int = 2
    """Layers whose heads are ablated and timed, at equal distances; the others cost as much on average."""
    rounds: int = 1
    """Of both sides in turn."""
    threads: int = 0
    """Cores; 0: all."""
    out: Path = Path("runs/bench/public-models.json")
    """Where the JSON goes."""


def in_its_own_process(side: Callable[..., Found], threads: int, *args: Any) -> Found:
    """What a side answers, and its peak memory in MB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    # Threads of PyTorch's that wait must not count as work where others use the cores as well.
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
    child = context.Process(target=_serve, args=(theirs, side, threads, args))
    child.start()
    theirs.close()
    try:
        answer: Found = ours.recv()
    except EOFError:
        raise SystemExit(f"{side.__name__} failed") from None
    child.join()
    return answer


def _serve(connection: Any, side: Callable[..., Found], threads: int, args: tuple[Any, ...]) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    process.keep_freed_memory()
    process.one_blas_thread()
    process.quiet_libraries()
    answer = side(*args)
    status = Path("/proc/self/status").read_text()  # getrusage counts what a process was before its exec
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    connection.send(answer | {"peak_mb": peak_kb / 1024})


def check_scores(ours: Found, theirs: Found) -> float:
    """The largest difference of a head score. Raises SystemExit where the sides measure something else."""
    worst = max(float(np.abs(np.subtract(ours["scores"][n], theirs["scores"][n])).max()) for n in SCORES)
    others = {f"composition {m}": (ours["composition"][m], theirs["composition"][m]) for m in "qkv"}
    others["loss"] = (ours["loss"], theirs["loss"])
    off = {name: pair for name, pair in others.items() if abs(pair[0] - pair[1]) > 1e-3 * abs(pair[1])}
    if worst > 1e-4 or off:
        raise SystemExit(f"the two sides measure something else: head scores differ by {worst:.1e}, {off}")
    return worst


class Row:
    """Rounds of two sides, as a row of the table."""

    def __init__(self, name: str, goal: str, ours: list[Found], theirs: list[Found], peer: str) -> None:
        self.name, self.goal, self.ours, self.theirs, self.peer = name, goal, ours, theirs, peer

    def _pairs(self, what: str) -> list[tuple[float, float]]:
        return [(a[what], b[what]) for a, b in zip(self.ours, self.theirs, strict=True) if what in a and what in b]

    def cells(self) -> list[str]:
        cells = [f"{self.name} (goal {self.goal}), beside {self.peer}"]
        for what, unit in (("wall_s", " s"), ("cpu_s", " s"), ("peak_mb", " MB")):
            pairs = self._pairs(what)
            if not pairs:
                cells.append("")
                continue
            ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratios = sorted(b / a for a, b in pairs)
            spread = f" ({ratios[0]:.2f} to {ratios[-1]:.2f})" if len(ratios) > 1 else ""
            cells.append(f"{ours:,.4g} and {theirs:,.4g}{unit}, {statistics.median(ratios):.2f}{spread}")
        return cells


def _analysis_and_ablation(args: Args, threads: int) -> list[Row]:
    rows = []
    n_rows = max(args.rows, ABLATED_ROWS)
    with tempfile.TemporaryDirectory() as folder:
        sizes = in_its_own_process(prepare, threads, str(args.run), folder, n_rows)
        if "analysis" in args.only:
            ours, theirs = [], []
            for _ in range(args.rounds):
                ours.append(in_its_own_process(our_analysis, threads, str(args.run), n_rows, threads))
                theirs.append(in_its_own_process(their_analysis, threads, folder, threads))
                theirs[-1]["scores_differ_by"] = check_scores(ours[-1], theirs[-1])
            rows.append(Row("head scores, losses, composition", "3, memory 2", ours, theirs, "TransformerLens"))
        if "ablation" in args.only:
            layers = layers_between(sizes["n_layers"], args.layers)
            ours, theirs = [], []
            for _ in range(args.rounds):
                ours.append(in_its_own_process(our_ablation, threads, str(args.run), layers, threads))
                theirs.append(in_its_own_process(their_ablation, threads, folder, layers, threads))
                np.testing.assert_allclose([of[0] for of in ours[-1]["losses"]], theirs[-1]["losses"], rtol=1e-4)
                # Seconds of a head, times all of them.
                for side, n in ((ours[-1], args.layers * sizes["n_heads"]), (theirs[-1], args.layers)):
                    side |= {
                        name: side[name] * sizes["n_layers"] * sizes["n_heads"] / n for name in ("wall_s", "cpu_s")
                    }
            rows.append(Row("every head ablated, 8 rows of 512", "5", ours, theirs, "TransformerLens"))
    return rows


def _import(args: Args, threads: int) -> Row:
    with tempfile.TemporaryDirectory(dir=args.out.parent) as folder:
        size = {"n_bytes": in_its_own_process(export_series, threads, str(args.run), folder)["n_bytes"]}
        ours, theirs = [], []
        for _ in range(args.rounds):
            theirs.append(in_its_own_process(reading, threads, folder) | size)
            ours.append(in_its_own_process(our_import, threads, folder) | size)
    return Row(f"import of {size['n_bytes'] / 2**20:,.0f} MiB", "0.5", ours, theirs, "reading the bytes")


def _training(args: Args) -> Row:
    from benchmarks import peers
    from benchmarks.shapes import LLAMA

    (config,) = LLAMA.values()
    race = peers.Args(rounds=max(3, args.rounds), contenders=(peers.OURS, "LlamaForCausalLM"), records=False)
    found = peers.time_shape(config, race)
    ours, theirs = (
        [
            {"wall_s": 1e6 / wall, "cpu_s": 1e6 / cpu}
            for wall, cpu in zip(found[name], found[name + peers.CPU], strict=True)
        ]
        for name in race.contenders
    )
    return Row("training a Llama, a million tokens", "1.3", ours, theirs, "torch.compile of LlamaForCausalLM")


def main(args: Args) -> None:
    """Measure, print the table and write the JSON."""
    threads = args.threads or process.cpu_count()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = _analysis_and_ablation(args, threads) if {"analysis", "ablation"} & set(args.only) else []
    rows += [_import(args, threads)] if "import" in args.only else []
    rows += [_training(args)] if "training" in args.only else []
    table = Table(f"{threads} threads; ours and theirs, theirs / ours", "wall", "CPU", "peak memory", box=None)
    for row in rows:
        table.add_row(*row.cells())
    results = {row.name: {"goal": row.goal, "ours": row.ours, row.peer: row.theirs} for row in rows}
    load = os.getloadavg()
    args.out.write_text(json.dumps({"command": sys.argv, "load": load, "threads": threads, "rows": results}, indent=1))
    console = Console()
    console.print(table)
    console.print(f"load of the machine {load[0]:.1f}; also in {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
