"""Run directories for reports: hand-built models, and analyses written by hand, whose every number is known."""

import json
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


def made_run(path: Path, model: ModelConfig, variables: dict[str, tuple[tuple[str, ...], object]]) -> ReportedRun:
    """A run of snapshots 0, 10, ..., 100 at as many thousand tokens, whose analysis holds just these variables."""
    steps = np.arange(0, 101, 10)
    run = make_run(path, model, {0: random_params(model)}, random_rows(model, 2))
    data = xr.Dataset(
        {name: (dims, np.asarray(values)) for name, (dims, values) in variables.items()},
        coords={"snapshot": steps, "tokens": ("snapshot", 1000 * steps), "selected": steps},
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
