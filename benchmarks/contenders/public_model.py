"""What each side does with a public model; `benchmarks.public_models` gives each a process and compares them."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax import process

Found = dict[str, Any]
ABLATED_ROWS = 8
SCORES = (
    "prefix_matching", "prefix_matching_mean", "duplicate_token", "induction_stripe", "previous_token", "current_token",
    "first_token",
)  # fmt: skip


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
    rows: dict[str, Any] = {name: np.asarray(array) for name, array in context.arrays.items()}
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
        "scores": {name: scores[name][0].tolist() for name in SCORES},
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
    scores: dict[str, Any] = {}
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
    config, rows = run.config.model, make_context(run, ABLATED_ROWS).held_out
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
                for some in rows["held_out"][:ABLATED_ROWS].split(2)
            ]
            losses.append(sum(found) / len(found))
    return clock.found() | {"losses": losses}


def _loss(logits: Any, rows: Any) -> Any:
    """Mean loss of a row's every token but the first: its own `return_type="loss"` leaves out the last one too."""
    return -logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).mean()


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
