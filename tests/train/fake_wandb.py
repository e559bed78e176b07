"""A W&B that tests hold in their hands, and points to send."""

from collections.abc import Callable
from typing import Any, SupportsFloat

import numpy as np
import pytest
import wandb

from icl_jax.config import Config, TrackerConfig
from icl_jax.rundir.record import ProbeResult
from icl_jax.train.watch.tracker import Tracker

API_KEY = "0123456789" * 4


class FakeRun:
    """Stands in for ``wandb.Run``."""

    offline = True
    id = "abc123"
    dir = "somewhere/wandb/offline-run/files"

    def __init__(self, log: Callable[[int], None] = lambda n: None, finish: Callable[[], None] = lambda: None) -> None:
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: list[list[str]] = []
        self.exit_code: int | None = None
        self._log = log
        self._finish = finish

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log_artifact(self, _artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.artifacts.append(aliases)

    def alert(self, title: str, text: str) -> None:
        pass

    def log(self, row: dict[str, Any]) -> None:
        self._log(len(self.rows))
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self._finish()
        self.exit_code = exit_code


def fake_init(monkeypatch: pytest.MonkeyPatch, run: FakeRun) -> list[dict[str, Any]]:
    """Make ``wandb.init`` return a fake run; the list fills with the arguments of its calls."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> FakeRun:
        calls.append(arguments)
        return run

    monkeypatch.setattr(wandb, "init", init)
    return calls


def with_wandb(mode: Any, **fields: Any) -> Config:
    return Config(tracker=TrackerConfig(wandb=mode, **fields))


def log_step(tracker: Tracker, step: int) -> None:
    scalars: dict[str, SupportsFloat] = {
        "loss": np.float32(4 - step / 1024),
        "lr": 1e-3,
        "grad_norm": 0.5,
        "tokens_per_s": 3e4 + step,
    }
    tracker.log_step(step, step * 10, scalars)


def log_probe(tracker: Tracker, step: int, scale: float = 1.0) -> None:
    score_NH = np.float32(scale) * np.arange(6, dtype=np.float32).reshape(2, 3) / 8
    result = ProbeResult(
        step=step,
        icl_score=-step / 512,
        icl_windowed=-step / 256,
        icl_score_sem=0.1,
        icl_sem=0.05,
        held_out_loss=np.linspace(4, 3, 5) - step / 512,
        prefix_matching=score_NH,
        previous_token=1 - score_NH,
    )
    tracker.log_probe(step * 10, result)
