"""A run directory in Python: ``run = icl_jax.open_run("runs/repeats-2l")``."""

import html
import warnings
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from icl_jax.config import Config, UserError
from icl_jax.rundir import HeldOut, RunDir

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from icl_jax.analysis.probe import Probe
    from icl_jax.maths.finding import Finding


class OpenedRun:
    """What a run holds, read when asked for. Everything raises UserError where it is missing or damaged."""

    def __init__(self, path: str) -> None:
        self._run = RunDir.open(path)

    def member(self, index: int) -> "OpenedRun":
        """One member of a run with members, counted from 0: a run like any other. Raises UserError if there is none.

        Without it, record and parameters of such a run have an axis `member`, and its analysis is over members.
        """
        return OpenedRun(str(self._run.member(index).path))

    @property
    def path(self) -> str:
        return str(self._run.path)

    @property
    def config(self) -> Config:
        """The resolved config, exactly what ran."""
        return self._run.config

    @cached_property
    def record(self) -> "xr.Dataset":
        """The loss of every position at every step, and the live measures; read lazily."""
        return self._run.load_record()

    @cached_property
    def snapshots(self) -> list[int]:
        """Steps whose parameters are kept."""
        return [entry.step for entry in self._run.read_snapshots()]

    def params(self, step: int) -> dict[str, np.ndarray]:
        """Parameters after `step` updates, checked against the manifest's hash."""
        return self._run.load_params(step)

    @cached_property
    def held_out(self) -> HeldOut:
        """Rows that were never trained on, and tokens for random sequences."""
        return self._run.load_held_out()

    @cached_property
    def analysis(self) -> "xr.Dataset":
        """Every measurement that `icl-jax analyze` has taken; read lazily. Warns where the run has changed since.

        Of a run with members what is measured over them: see `icl_jax.analysis.over_members`.
        """
        from icl_jax.analysis.dataset import load_dataset, outdated  # with the measurements, and flax

        dataset = load_dataset(self._run.path / "analysis.zarr")
        if change := outdated(self._run, dataset):
            warnings.warn(f"{change}: icl-jax analyze measures what is new", stacklevel=3)
        return dataset

    @cached_property
    def phase_change(self) -> "Finding | None":
        """What the live ICL score says, without an analysis: see `icl_jax.maths.finding`; None without probes."""
        from icl_jax.maths.finding import find_in_record  # with SciPy

        self._run.one()
        return find_in_record(self.record)

    def heads(self, step: int | None = None) -> "pd.DataFrame":
        """One row for each (layer, head), one column for each measurement of single heads, at a snapshot (the last).

        Raises UserError for a step that was not analyzed and for a model without heads.
        """
        analysis = self.analysis
        steps = analysis["snapshot"].values.tolist()
        if step is not None and step not in steps:
            raise UserError(f"step = {step}: was not analyzed; must be one of {steps}")
        at = analysis.sel(snapshot=steps[-1] if step is None else step).drop_vars(("snapshot", "tokens"))
        names = [name for name, values in at.data_vars.items() if values.dims == ("layer", "head")]
        if not names:
            raise UserError(f"{self.path}: no measurement of single heads: the model has none, or it was not asked for")
        return at[names].to_dataframe()

    def probe(self, text: str, step: int | None = None) -> "Probe":
        """A text token by token: losses, predictions, heads; see `icl_jax.analysis.probe.probe`.

        Warns where the run has changed since the analysis that says where its phase change is.
        """
        # Not at the top: it takes the tokenizer, the model and with it flax.
        from icl_jax.analysis.probe import probe

        found = probe(self._run.one(), text, step)
        if found.outdated is not None:
            warnings.warn(f"{found.outdated}: icl-jax analyze measures what is new", stacklevel=2)
        return found

    def _repr_html_(self) -> str:
        """The run in a notebook: what it is, and the curve of its in-context learning score."""
        model, data = self.config.model, self.config.data
        facts = {
            "model": f"{model.n_layers} layers of {model.n_heads} heads, width {model.d_model}, context {model.n_ctx}",
            "data": f"{data.source}, vocabulary {model.vocab_size}",
            "training": f"{self.config.train.n_steps} steps of {self.config.tokens_per_step:,} tokens",
            "snapshots": f"{len(self.snapshots)}",
        }
        curve = ""
        imported = self._run.imported
        if imported is not None:
            facts["training"] = f"elsewhere; imported from {imported['source']}"
        if self.config.members:
            facts["members"] = f"{len(self.config.members)}"
        is_recorded = imported is None and not self.config.members and "icl_windowed" in self.record
        scores = self.record["icl_windowed"].values if is_recorded else np.zeros(0)
        if len(scores) > 1 and np.isfinite(scores).all():
            facts["ICL score"] = f"{scores[0]:.2f} at first, {scores[-1]:.2f} at last (nats, windowed, held-out rows)"
            facts["phase change"] = self.phase_change.words() if self.phase_change is not None else ""
            curve = _curve(scores)
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
        return f"<b>{html.escape(self.path)}</b><table>{rows}</table>{curve}"

    def __repr__(self) -> str:
        model = self.config.model
        n = len(self.snapshots)
        return f"<icl_jax run {self.path!r}: {model.n_layers} layers, {self.config.train.n_steps} steps, {n} snapshots>"


def _curve(values: np.ndarray) -> str:
    """A line through values at even distances, as SVG."""
    x = np.linspace(2, 298, len(values))
    y = 78 - 76 * (values - values.min()) / (np.ptp(values) or 1)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    line = f'<polyline points="{points}" fill="none" stroke="#D55E00" stroke-width="2"/>'
    return f'<svg width="300" height="80" role="img" aria-label="ICL score over training">{line}</svg>'


def open_run(path: str) -> OpenedRun:
    """Open a run directory, a local path or a bucket URL. Raises UserError if it is none."""
    return OpenedRun(path)
