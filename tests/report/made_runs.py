"""Run directories for reports: hand-built models, and analyses written by hand, whose every number is known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from icl_jax.analysis.dataset import save_dataset
from icl_jax.config import ModelConfig
from icl_jax.maths.change_point import Change
from icl_jax.maths.finding import Finding, arrays_of
from icl_jax.report.reported_run import ReportedRun
from icl_jax.rundir import RunDir
from tests.analysis.small_runs import make_run, random_rows
from tests.model.random_params import random_params
from tests.rundir.made_run import edit_config

N_MEMBERS, WITHOUT = 12, 4
"""Of the run with members, and the one that never changes."""
HOSTILE = (
    "<bos>", "<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "&lt;b&gt;", "\u202eright to left",
    "\u05e9\u05dc\u05d5\u05dd", "a\u2028b\u2029c", "\x00\x1b[31m", "{{ plotly }}", "<!--<script>", "'\"`${1}\\",
)  # fmt: skip
"""Tokens that would break a page, end its script or run in it."""


def add_tokenizer(path: Path, tokens: tuple[str, ...] = HOSTILE) -> None:
    """A word-level tokenizer.json with these tokens, in the run directory."""
    model = {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": tokens[0]}
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    text = json.dumps({"version": "1.0", "added_tokens": [], **nothing, "model": model})
    (path / "tokenizer.json").write_text(text, encoding="utf-8")


def add_labels(run: RunDir, names: tuple[str, ...]) -> None:
    """Label the held-out tokens in turn: none, the first label, the second, none, ..."""
    held_out = run.load_held_out()
    labels = (np.arange(held_out.rows.size) % (len(names) + 1)).reshape(held_out.rows.shape).astype(np.uint8)
    replace(held_out, label_names=names, labels=labels).save(run.path / "held_out.zarr")


def set_seed(path: Path, seed: int) -> None:
    """Make it a run of other seeds, as far as its config says."""
    edit_config(path, lambda text: text.replace("seed = 0", f"seed = {seed}"))


def made_run(
    path: Path, model: ModelConfig, variables: dict[str, tuple[tuple[str, ...], object]],
    steps: Sequence[int] = range(0, 101, 10),
) -> ReportedRun:  # fmt: skip
    """A run of snapshots 0, 10, ..., 100 at as many thousand tokens, whose analysis holds just these variables."""
    run = make_run(path, model, {steps[0]: random_params(model)}, random_rows(model, 2))
    data = xr.Dataset(
        {name: (dims, np.asarray(values)) for name, (dims, values) in variables.items()},
        coords={
            "snapshot": list(steps),
            "tokens": ("snapshot", 1000 * np.array(steps)),
            "selected": list(steps),
            "selected_tokens": ("selected", 1000 * np.array(steps)),
        },
        attrs={"absent": json.dumps({"smear": "keys are not smeared"})},
    )
    save_dataset(data, run.path / "analysis.zarr")
    return ReportedRun(run, path.name)


def window(start: int, end: int) -> dict[str, tuple[tuple[str, ...], object]]:
    """The variables of a phase change of -1 nat, all of the run's, between two steps; 90 % intervals of ±5 steps."""
    at, to = 1000.0 * start, 1000.0 * end
    ends = ((at - 5000, at + 5000), (to - 5000, to + 5000))
    change = Change(at, to, -1.0, 1.0, *ends, (-1.1, -0.9), (0.9, 1.1))
    return _found(Finding((change,), 1e-9), start, end)


def no_change() -> dict[str, tuple[tuple[str, ...], object]]:
    """The variables of a run whose score is smooth: p = 0.5."""
    return _found(Finding((), 0.5), 10, 100)


def open_change(start: int) -> dict[str, tuple[tuple[str, ...], object]]:
    """Those of a run that ends inside its change, of which -0.5 nats are done."""
    at, inf = 1000.0 * start, float("inf")
    change = Change(at, inf, -0.5, 1.0, (at - 5000, at + 5000), (inf, inf), (-0.6, -0.4), (0.9, 1.1))
    return _found(Finding((change,), 1e-9), start, 100)


def _found(finding: Finding, before: int, after: int) -> dict[str, tuple[tuple[str, ...], object]]:
    arrays = {name: values[0] for name, values in arrays_of([finding]).items()}
    dims = ((), ("change",), ("change", "bound"))
    found = {f"change_{name}": (dims[values.ndim], values) for name, values in arrays.items()}
    return {**found, "step_before": ((), before), "step_after": ((), after)}


PER_HEAD = ("snapshot", "layer", "head")


def small_model(n_layers: int = 2, **changes) -> ModelConfig:
    return ModelConfig(n_layers=n_layers, d_model=6, n_heads=2, n_ctx=17, vocab_size=11, **changes)


def icl_step(before: float, after: float) -> np.ndarray:
    """Flat to step 40, at `after` from step 60 on, midway between."""
    return np.array([before] * 5 + [(before + after) / 2] + [after] * 5)


def scores_step(*final: float) -> np.ndarray:
    """[snapshot, layer, head], two heads a layer: 0 to step 40, the final scores from step 60 on."""
    ramp = np.array([0.0] * 5 + [0.5] + [1.0] * 5)
    return ramp[:, None, None] * np.array(final).reshape(-1, 2)


def plain_run(path: Path, *, forms: bool, model: ModelConfig, final: float = -1.0, **variables) -> ReportedRun:
    last_layer = (0.9, 0.1) if forms else (0.1, 0.1)
    matching = (0.0, 0.0) * (model.n_layers - 1) + last_layer
    found = {
        "icl_windowed": (("snapshot",), icl_step(0.0, final)),
        "prefix_matching": (PER_HEAD, scores_step(*matching)),
        **(window(40, 60) if forms else no_change()),
        **variables,
    }
    return made_run(path, model, found)


def labelled_run(path: Path, seed: int, after: float) -> ReportedRun:
    n = np.arange(11)
    prob = np.stack([np.where(n < 6, 0.1, after), np.full(11, np.nan)], axis=1)
    run = plain_run(
        path, forms=True, model=small_model(),
        label=(("label",), np.array(["again", "never"])), label_n=(("label",), np.array([3, 0])),
        label_prob=(("snapshot", "label"), prob), label_rank=(("snapshot", "label"), 1 / prob),
        labelled_label=(("labelled",), np.array([0, 0, 0])),
        labelled_prob=(("snapshot", "labelled"), np.tile([after - 0.1, after, after + 0.1], (11, 1))),
    )  # fmt: skip
    set_seed(path, seed)
    return ReportedRun(type(run.run).open(str(path)), path.name)


def with_config(run: ReportedRun, section: str, **values) -> ReportedRun:
    """The run, as if of another config."""
    config = replace(run.run.config, **{section: replace(getattr(run.run.config, section), **values)})
    return ReportedRun(replace(run.run, config=config), run.name)
