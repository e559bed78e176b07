"""Speed and memory of analysis over a whole run; with --peers the same scores by TransformerLens's own calls.

`make bench` measures ours, `make bench-peers` both. The run has the model of a config, random snapshots and rows:
what is in the weights does not change the time. All snapshots are timed as a user sees it, `icl-jax analyze` from its
start to its end, compilation included; the parts, ours and TransformerLens's, in this process, without the first and
slowest time. Writes runs/bench/analysis.json beside the printed table.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.config import Config

SCORES = "held_out_loss,icl,head_scores,composition"


@dataclass(frozen=True)
class Args:
    """What to measure."""

    config: str = "python-2l"
    """Config whose model is used."""
    snapshots: int = 200
    """Snapshots of the run."""
    peers: bool = False
    """Also take the scores with TransformerLens (extra `parity`)."""
    peer_snapshots: int = 3
    """Snapshots that TransformerLens is timed on."""
    out: Path = Path("runs/bench/analysis.json")
    """Where the JSON goes."""


def _make_run(path: Path, config: Config, n_snapshots: int) -> Any:
    """A run directory of random snapshots: weights that grow, as in training."""
    from icl_jax.data import open_corpus
    from icl_jax.rundir import RunDir
    from icl_jax.train.held_out import take_held_out
    from icl_jax.train.step import init_state

    corpus = open_corpus(config)
    run = RunDir.create(str(path), config, corpus_sha256=corpus.fingerprint, held_out=take_held_out(config, corpus))
    first = {name: np.asarray(value) for name, value in init_state(config).params.items()}
    for step in range(n_snapshots):
        rng = np.random.default_rng(step)
        noise = {name: rng.standard_normal(value.shape, np.float32) for name, value in first.items()}
        scale = 0.1 * step / n_snapshots
        run.save_snapshot(step, {name: value + scale * noise[name] for name, value in first.items()})
    return run


def _analyze(path: Path, only: str) -> tuple[float, float]:
    """Seconds and peak memory (MB) of `icl-jax analyze` in a process of its own."""
    command = [sys.executable, "-c", "from icl_jax.cli.main import main; main()", "analyze", str(path), "--only", only]
    start_s = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start_s
    if status:
        raise SystemExit(f"icl-jax analyze --only {only} failed with status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_maxrss / 1024


def _ours(run: Any) -> dict[str, list[float]]:
    """Seconds per snapshot of each part, batch by batch; the first batch, which compiles, is left out."""
    from icl_jax.analysis.run_measurements import make_context
    from icl_jax.analysis.session import load_stacked
    from icl_jax.measures import composition, head_scores, held_out_loss

    context = make_context(run)
    steps = [entry.step for entry in run.manifest.read()]
    parts: dict[str, Any] = {
        "losses": held_out_loss.MEASUREMENT,
        "head scores": head_scores.MEASUREMENT,
        "composition": composition.MEASUREMENT,
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(4):
        params = load_stacked(run, steps[:8])
        for name, measurement in parts.items():
            start_s = time.perf_counter()
            measurement.measure(context, params)
            seconds[name].append((time.perf_counter() - start_s) / 8)
    return {name: values[1:] for name, values in seconds.items()}


def _word(token: int) -> str:
    """The text of an id; BOS, a special token, must not be part of another."""
    return f"t{token}" if token else "<bos>"


def _numbers_as_words(vocab_size: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({_word(token): token for token in range(vocab_size)}, unk_token=_word(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token"), _word(0))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_bos_token=True, name_or_path="", **special)


def _transformer_lens(run: Any, n_snapshots: int) -> dict[str, list[float]]:
    """The same parts by its own calls: losses of the same rows, heads detected on the same sequences, composition.

    `detect_head` takes text: a tokenizer whose words are the numbers of the ids stands between.
    """
    import warnings

    import torch

    from icl_jax.analysis.run_measurements import make_context
    from icl_jax.export.transformer_lens import hooked_config, hooked_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.head_detector import detect_head

        model = HookedTransformer(
            HookedTransformerConfig(**hooked_config(run.config.model), device="cpu"),
            tokenizer=_numbers_as_words(run.config.model.vocab_size),
        ).eval()
    context = make_context(run)
    rows = torch.from_numpy(context.held_out[:, :-1].astype(np.int64))
    repeated, natural = (
        # detect_head takes less than a whole context.
        [" ".join(_word(token) for token in row[1 : run.config.model.n_ctx - 1]) for row in tokens]
        for tokens in (context.repeated, context.natural)
    )

    def losses() -> None:
        for batch in rows.split(16):
            model(batch, return_type="loss", loss_per_token=True)

    def head_scores() -> None:
        detect_head(model, repeated, "induction_head")
        detect_head(model, repeated, "duplicate_token_head")
        detect_head(model, natural, "previous_token_head")

    def composition() -> None:
        for mode in ("Q", "K", "V"):
            model.all_composition_scores(mode)

    parts = {"losses": losses, "head scores": head_scores, "composition": composition}
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    with torch.inference_mode():
        for entry in run.manifest.read()[: n_snapshots + 1]:
            state = hooked_state_dict(run.load_params(entry.step), run.config.model)
            model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=False)
            for name, part in parts.items():
                start_s = time.perf_counter()
                part()
                seconds[name].append(time.perf_counter() - start_s)
    return {name: values[1:] for name, values in seconds.items()}


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})"


def main(args: Args) -> None:
    """Measure, print the table and write the JSON."""
    process.keep_freed_memory()
    process.quiet_libraries()
    named = find_config(args.config)[1]
    config = replace(
        named,
        data=replace(named.data, source="repeats"),  # its rows are at hand at once, at any vocabulary
        train=replace(named.train, n_steps=args.snapshots),
        optimizer=replace(named.optimizer, warmup_steps=0),
    )
    process.configure_jax(process.cpu_count())
    import jax

    from icl_jax.model.execution import resolve
    from icl_jax.rundir.checkpoints import quiet_orbax
    from icl_jax.train.environment import describe_start

    quiet_orbax()
    model = config.model
    table = Table(f"{args.snapshots} snapshots, {model.n_layers} layers, d_model {model.d_model}", "", box=None)
    results: dict[str, Any] = {"environment": describe_start(0, jax.devices(), sys.argv, resolve(model))}
    with tempfile.TemporaryDirectory() as folder:
        run = _make_run(Path(folder) / "run", config, args.snapshots)
        scores_s, scores_mb = _analyze(run.path, SCORES)
        ablation_s, ablation_mb = _analyze(run.path, "ablation")
        ours = _ours(run)
        theirs = _transformer_lens(run, args.peer_snapshots) if args.peers else {}
    results |= {"scores_s": scores_s, "scores_peak_mb": scores_mb, "ablation_s": ablation_s}
    results |= {"ablation_peak_mb": ablation_mb, "ours_s": ours, "transformer_lens_s": theirs}
    table.add_row("losses, head scores, composition, all snapshots, s", f"{scores_s:.1f}")
    table.add_row("peak memory, MB", f"{scores_mb:,.0f}")
    table.add_row("four ablations of every head, about 20 snapshots, s", f"{ablation_s:.1f}")
    table.add_row("peak memory, MB", f"{ablation_mb:,.0f}")
    for name, mine in ours.items():
        table.add_row(f"{name}, ms per snapshot", _spread([1e3 * value for value in mine]))
        if theirs:
            table.add_row("  TransformerLens, ms per snapshot", _spread([1e3 * value for value in theirs[name]]))
            ratio = statistics.median(theirs[name]) / statistics.median(mine)
            low, high = min(theirs[name]) / max(mine), max(theirs[name]) / min(mine)
            table.add_row("  TransformerLens / ours", f"{ratio:.1f} ({low:.1f} to {high:.1f})")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=1))
    console = Console()
    console.print(table)
    console.print(f"also in {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
