"""A run directory in Python: ``run = icl_jax.open_run("runs/repeats-2l")``."""

from functools import cached_property

import numpy as np
import xarray as xr

from icl_jax.analysis.dataset import load_dataset
from icl_jax.analysis.probe import Probe, probe
from icl_jax.config import Config
from icl_jax.rundir import HeldOut, RunDir


class OpenedRun:
    """What a run holds, read when asked for. Everything raises UserError where it is missing or damaged."""

    def __init__(self, path: str) -> None:
        self._run = RunDir.open(path)

    @property
    def path(self) -> str:
        return str(self._run.path)

    @property
    def config(self) -> Config:
        """The resolved config, exactly what ran."""
        return self._run.config

    @cached_property
    def record(self) -> xr.Dataset:
        """The loss of every position at every step, and the live measures; read lazily."""
        return self._run.load_record()

    @cached_property
    def snapshots(self) -> list[int]:
        """Steps whose parameters are kept."""
        return [entry.step for entry in self._run.manifest.read()]

    def params(self, step: int) -> dict[str, np.ndarray]:
        """Parameters after `step` updates, checked against the manifest's hash."""
        return self._run.load_params(step)

    @cached_property
    def held_out(self) -> HeldOut:
        """Rows that were never trained on, and tokens for random sequences."""
        return self._run.load_held_out()

    @cached_property
    def analysis(self) -> xr.Dataset:
        """Every measurement that `icl-jax analyze` has taken; read lazily."""
        return load_dataset(self._run.path / "analysis.zarr")

    def probe(self, text: str, step: int | None = None) -> Probe:
        """A text token by token: losses, predictions, heads; see `icl_jax.analysis.probe.probe`."""
        return probe(self._run, text, step)

    def __repr__(self) -> str:
        model = self.config.model
        n = len(self.snapshots)
        return f"<icl_jax run {self.path!r}: {model.n_layers} layers, {self.config.train.n_steps} steps, {n} snapshots>"


def open_run(path: str) -> OpenedRun:
    """Open a run directory, a local path or a bucket URL. Raises UserError if it is none."""
    return OpenedRun(path)
