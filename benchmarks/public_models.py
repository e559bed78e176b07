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
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from icl_jax import process

Part = Literal["analysis", "ablation", "import", "training"]
Found = dict[str, Any]


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


# ---------------------------------------------------------------------------------------------------------- processes


class Clock:
    """Wall and CPU seconds of what stands in a `with`."""

    def __enter__(self) -> "Clock":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu

    def found(self, name: str = "") -> Found:
        """Both, by names that begin with this."""
        return {f"{name}wall_s": self.wall_s, f"{name}cpu_s": self.cpu_s}


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


# ----------------------------------------------------------------------------------------------- analysis and ablation

_ABLATED_ROWS = 8
_SCORES = (
    "prefix_matching", "prefix_matching_mean", "duplicate_token", "induction_stripe", "previous_token", "current_token",
    "first_token",
)  # fmt: skip


def prepare(run_path: str, folder: str, n_rows: int) -> Found:
    """For TransformerLens: its state dict, its config and the tokens that the measurements read, as files."""
    from safetensors.numpy import save_file

    from icl_jax.analysis.run_measurements import make_context
    from icl_jax.export.transformer_lens import hooked_config, hooked_state_dict
    from icl_jax.rundir import RunDir

    run = RunDir.open(run_path)
    config = run.config.model
    params = run.load_params(run.snapshots()[-1].step)
    if "ln1_w" in params:  # as composition reads heads
        ln1_ND = params.pop("ln1_w")
        params |= {name: params[name] * ln1_ND[:, None, :, None] for name in ("W_Q", "W_K", "W_V")}
        params["ln1_w"] = np.ones_like(ln1_ND)
    state = hooked_state_dict(params, config)
    hooked = hooked_config(config)
    if config.key_heads < config.n_heads:
        # It can share keys itself, which is less work.
        hooked["n_key_value_heads"] = config.key_heads
        n_shared = config.n_heads // config.key_heads
        for layer in range(config.n_layers):
            for name in ("W_K", "W_V", "b_K", "b_V"):
                state[f"blocks.{layer}.attn._{name}"] = state.pop(f"blocks.{layer}.attn.{name}")[::n_shared]
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, f"{folder}/state.safetensors")
    context = make_context(run, n_rows)
    rows = {name: np.asarray(array) for name, array in context.arrays.items()}
    Path(folder, "config.json").write_text(json.dumps(hooked))
    np.savez(f"{folder}/rows.npz", held_out=context.held_out, **{n: rows[n] for n in rows if n != "held_out"})
    return {"n_layers": config.n_layers, "n_heads": config.n_heads}


def our_analysis(run_path: str, n_rows: int, threads: int) -> Found:
    from icl_jax.analysis.run_measurements import make_context
    from icl_jax.analysis.session import load_stacked
    from icl_jax.measures import composition, head_scores, held_out_loss
    from icl_jax.measures.measurement import measure_all
    from icl_jax.rundir import RunDir

    process.configure_jax(threads)
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    run = RunDir.open(run_path)
    context = make_context(run, n_rows)
    params = load_stacked(run, [run.snapshots()[-1].step])
    parts = (held_out_loss.MEASUREMENT, head_scores.MEASUREMENT, composition.MEASUREMENT)
    with Clock() as clock:  # compilation too
        answers = {m.name: answer for m, answer in measure_all(parts, context, params)}
    scores, composed = answers["head_scores"], answers["composition"]
    baseline = float(composed["composition_baseline"][0])
    return clock.found() | {
        "loss": float(np.mean(answers["held_out_loss"]["loss_by_position"])),
        "scores": {name: scores[name][0].tolist() for name in _SCORES},
        "composition": {m: baseline + float(np.nanmean(composed[f"{m}_composition"])) for m in "qkv"},
    }


def _hooked(folder: str, threads: int) -> tuple[Any, dict[str, Any]]:
    """HookedTransformer with the model's weights, and the rows."""
    import warnings

    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = json.loads(Path(folder, "config.json").read_text())
        model = HookedTransformer(HookedTransformerConfig(**config, device="cpu", init_weights=False)).eval()
    model.load_state_dict(load_file(f"{folder}/state.safetensors"), strict=False, assign=True)
    with np.load(f"{folder}/rows.npz") as saved:
        rows = {name: torch.from_numpy(saved[name].astype(np.int64)) for name in saved.files}
    return model, rows


def their_analysis(folder: str, threads: int) -> Found:
    """TransformerLens's own calls: patterns by `run_with_cache` without logits, losses, composition a layer at a time.

    Its `all_composition_scores` would hold all pairs of heads at once, tens of gigabytes.
    """
    import torch

    model, rows = _hooked(folder, threads)
    scores: dict[str, list[Any]] = {name: [] for name in _SCORES}
    parts: Found = {}
    with Clock() as clock:
        with Clock() as part:
            for kind, n_each in (("repeated", 10), ("repeated_once", 10), ("natural", 1)):
                found = [_pattern_scores(model, some, kind) for some in rows[kind].split(n_each)]
                for name in found[0]:
                    scores[name] = torch.stack([each[name] for each in found]).mean(0)
        parts |= part.found("scores_")
        with Clock() as part:
            losses = [_loss(model(some[:, :-1], return_type="logits"), some) for some in rows["held_out"].split(1)]
        parts |= part.found("losses_")
        with Clock() as part:
            composition = {mode: _composition(model, mode) for mode in "qkv"}
        parts |= part.found("composition_")
    return (
        clock.found()
        | parts
        | {
            "loss": float(torch.stack(losses).mean()),
            "scores": {name: value.tolist() for name, value in scores.items()},
            "composition": composition,
        }
    )


def _pattern_scores(model: Any, tokens: Any, kind: str) -> dict[str, Any]:
    """Of each head, [layer, head]: the definitions of `icl_jax.measures.head_scores`."""
    import torch

    _, cache = model.run_with_cache(tokens, return_type=None, names_filter=lambda name: name.endswith("hook_pattern"))
    earlier = (tokens[:, :, None] == tokens[:, None, :]) & torch.ones(2 * [tokens.shape[1]]).tril(-1).bool()
    target = torch.nn.functional.pad(earlier[:, :, :-1], (1, 0))
    is_query = earlier.any(-1)
    found: dict[str, list[Any]] = {}

    def add(**values: Any) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value)

    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer]
        if kind == "repeated":
            total = (pattern * target[:, None]).sum((0, 2, 3))
            add(
                prefix_matching=total / is_query.sum(), prefix_matching_mean=total / target.sum(),
                duplicate_token=(pattern * earlier[:, None]).sum((0, 2, 3)) / is_query.sum(),
            )  # fmt: skip
        elif kind == "repeated_once":
            below = (tokens.shape[1] - 1) // 2 - 1
            add(induction_stripe=pattern.diagonal(-below, -2, -1).mean((0, 2)))
        else:
            add(
                previous_token=pattern.diagonal(-1, -2, -1).mean((0, 2)),
                current_token=pattern.diagonal(0, -2, -1)[..., 1:].mean((0, 2)),
                first_token=pattern[..., 1:, 0].mean((0, 2)),
            )
    return {name: torch.stack(values) for name, values in found.items()}


def _composition(model: Any, mode: str) -> float:
    """Mean over pairs of an earlier and a later head, as its `composition_scores` takes them."""
    right = {"q": lambda: model.QK, "k": lambda: model.QK.T, "v": lambda: model.OV}[mode]().collapse_r()
    left = model.OV.collapse_l()
    left_norm, right_norm = (side.norm(dim=(-2, -1)) for side in (left, right))
    total, n_pairs = 0.0, 0
    for layer in range(model.cfg.n_layers - 1):
        products = left[layer][:, None, None] @ right[layer + 1 :][None]
        found = products.norm(dim=(-2, -1)) / right_norm[layer + 1 :][None] / left_norm[layer][:, None, None]
        total, n_pairs = total + float(found.sum()), n_pairs + found.numel()
    return total / n_pairs


def layers_between(n_layers: int, n: int) -> list[int]:
    """As many layers, in the middle of equal parts: what lies behind them is on average half of the model."""
    return [(2 * i + 1) * n_layers // (2 * n) for i in range(n)]


def our_ablation(run_path: str, layers: list[int], threads: int) -> Found:
    """Seconds of all heads of these layers, and the loss without each."""
    process.configure_jax(threads)
    import jax

    from icl_jax.analysis.run_measurements import make_context
    from icl_jax.measures.ablation import ablate
    from icl_jax.rundir import RunDir

    jax.config.update("jax_enable_compilation_cache", False)
    run = RunDir.open(run_path)
    config, rows = run.config.model, make_context(run, _ABLATED_ROWS).held_out
    params = {name: jax.numpy.asarray(value) for name, value in run.load_params(run.snapshots()[-1].step).items()}
    compiled = (
        jax.jit(lambda params: ablate(params, rows, config, ("full",), layers=layers)["full"]).lower(params).compile()
    )
    with Clock() as clock:
        loss = np.asarray(compiled(params)).mean(axis=(2, 3))
    return clock.found() | {"losses": loss.tolist()}


def their_ablation(folder: str, layers: list[int], threads: int) -> Found:
    """`run_with_hooks` with a hook on z, of the first head of each layer, two rows at a time."""
    model, rows = _hooked(folder, threads)

    def without_first(z: Any, hook: Any) -> Any:
        z[:, :, 0] = 0
        return z

    losses = []
    with Clock() as clock:
        for layer in layers:
            hooks = [(f"blocks.{layer}.attn.hook_z", without_first)]
            found = [
                float(_loss(model.run_with_hooks(some[:, :-1], return_type="logits", fwd_hooks=hooks), some))
                for some in rows["held_out"][:_ABLATED_ROWS].split(2)
            ]
            losses.append(sum(found) / len(found))
    return clock.found() | {"losses": losses}


def _loss(logits: Any, rows: Any) -> Any:
    """Mean loss of a row's every token but the first: its own `return_type="loss"` leaves out the last one too."""
    return -logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).mean()


# -------------------------------------------------------------------------------------------------------------- import


def export_series(run_path: str, folder: str) -> Found:
    """Two checkpoints in the hub's layout, the last snapshot and one of the same size."""
    from safetensors.numpy import save_file

    from icl_jax.export.as_family import form_of
    from icl_jax.rundir import RunDir

    run = RunDir.open(run_path)
    form = form_of(run.config.model)
    params = run.load_params(run.snapshots()[-1].step)
    for step in (1, 2):
        at = Path(folder, f"step{step}")
        at.mkdir()
        (at / "config.json").write_text(json.dumps(form.config))
        (at / "tokenizer.json").write_text((Path(run_path) / "tokenizer.json").read_text())
        tensors = form.tensors({name: value / step for name, value in params.items()})
        save_file({name: np.asarray(value, order="C") for name, value in tensors.items()}, at / "model.safetensors")
    Path(folder, "text.txt").write_text(Path(__file__).read_text() * 20)
    os.sync()
    return {"n_bytes": (Path(folder) / "step2" / "model.safetensors").stat().st_size}


def _forget(path: Path) -> None:
    """Out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def our_import(folder: str) -> Found:
    """Seconds of the second checkpoint; the first one's hold the tokenizer's and the text's as well."""
    from icl_jax.importing.import_run import ImportSettings, import_run
    from icl_jax.importing.sources.open_source import open_source

    weights = [Path(folder, f"step{step}", "model.safetensors") for step in (1, 2)]
    for path in weights:
        _forget(path)
    clocks = []

    def tell(_text: str) -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as out:
        settings = ImportSettings(text=f"{folder}/text.txt", n_ctx=512)
        import_run(open_source(folder, Path(out)), f"{out}/run", settings, tell)
    (wall, cpu), (end_wall, end_cpu) = clocks[-2:]
    return {"wall_s": end_wall - wall, "cpu_s": end_cpu - cpu}


def reading(folder: str) -> Found:
    """Seconds of the same file's bytes, read 16 MB at a time."""
    path = Path(folder, "step2", "model.safetensors")
    _forget(path)
    buffer = bytearray(2**24)
    with Clock() as clock, path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return clock.found()


# --------------------------------------------------------------------------------------------------------------- table


def check_scores(ours: Found, theirs: Found) -> float:
    """The largest difference of a head score. Raises SystemExit where the sides measure something else."""
    worst = max(float(np.abs(np.subtract(ours["scores"][n], theirs["scores"][n])).max()) for n in _SCORES)
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
    n_rows = max(args.rows, _ABLATED_ROWS)
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
