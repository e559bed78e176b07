"""A run directory filled without training: every array tells its step."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from icl_jax.config import Config, ModelConfig, OptimizerConfig, ProbeConfig, SnapshotConfig, TrainConfig
from icl_jax.rundir import HeldOut, RunDir, probe_steps, snapshot_steps
from icl_jax.rundir.checkpoints import Arrays
from icl_jax.rundir.record import ProbeResult, StepBlock
from tests.data_configs import data_config


def run_config(*, n_steps: int = 11, n_layers: int = 2, n_probes: int = 3, n_ctx: int = 7) -> Config:
    return Config(
        model=ModelConfig(n_layers=n_layers, d_model=12, n_heads=3, n_ctx=n_ctx, vocab_size=29),
        data=data_config(phrase_len=3, held_out_rows=13),
        train=TrainConfig(n_steps=n_steps, batch_size=5),
        optimizer=OptimizerConfig(warmup_steps=0),
        snapshots=SnapshotConfig(n_linear=3, n_log=2, keep_states=2),
        probes=ProbeConfig(n_probes=n_probes, held_out_rows=13),
    )


def params_of(step: int) -> Arrays:
    draw = np.random.default_rng(step).normal
    return {"W_E": draw(size=(29, 12)).astype(np.float32), "ln_final_w": draw(size=12).astype(np.float32)}


def state_of(step: int) -> Arrays:
    params = {f"params.{name}": value for name, value in params_of(step).items()}
    moments = {f"opt_state.0.mu.{name}": 0.1 * value for name, value in params_of(step).items()}
    return {"step": np.array(step, np.int32), **params, **moments}


def steps_of(config: Config, first: int, end: int) -> StepBlock:
    """Steps first .. end - 1; the loss of step s at position t is s + t / 100."""
    steps = np.arange(first, end)
    return StepBlock(
        first_step=first,
        loss=(steps[:, None] + np.arange(config.model.n_ctx) / 100).astype(np.float32),
        lr=(steps / 1000).astype(np.float32),
        grad_norm=(steps / 10).astype(np.float32),
        step_s=np.full(len(steps), 0.5, np.float32),
    )


def probe_of(config: Config, step: int) -> ProbeResult:
    heads = (config.model.n_layers, config.model.n_heads)
    scores = (step + np.arange(heads[0] * heads[1]).reshape(heads) / 100).astype(np.float32)
    return ProbeResult(
        step=step,
        icl_score=-step / 10,
        icl_windowed=-step / 20,
        icl_score_sem=step / 30,
        icl_sem=step / 40,
        held_out_loss=(step + np.arange(config.model.n_ctx) / 50).astype(np.float32),
        prefix_matching=scores,
        previous_token=scores + 1,
    )


def make_run(path: Path, config: Config, *, until: int | None = None) -> RunDir:
    """A run in the order in which training writes: to its end, or stopped with a state at step `until`."""
    end = config.train.n_steps if until is None else until
    rows = np.random.default_rng(0).integers(1, 29, (13, config.model.n_ctx + 1), dtype=np.int32)
    rows[:, 0] = 0
    held_out = HeldOut(rows, candidates=np.arange(2, 28, dtype=np.int32), bos_id=0)
    run = RunDir.create(str(path), config, corpus_sha256="c0", tokenizer_json='{"a": "ä"}', held_out=held_out)
    record = run.open_record()
    record.write_steps(steps_of(config, 0, end))
    for step in range(end + (end == config.train.n_steps)):
        if step in snapshot_steps(config):
            run.save_snapshot(step, params_of(step))
        if step in probe_steps(config):
            record.write_probe(probe_of(config, step))
    run.save_state(max(end - 2, 1), state_of(max(end - 2, 1)))
    run.save_state(end, state_of(end))
    return run


def edit_config(path: Path, edit: Callable[[str], str]) -> None:
    """Change a run's config, and the SHA-256 by which a change is noticed."""
    config, environment = path / "config.toml", path / "environment.json"
    config.write_text(edit(config.read_text(encoding="utf-8")), encoding="utf-8")
    held = json.loads(environment.read_text(encoding="utf-8"))
    held["sha256"]["config.toml"] = hashlib.sha256(config.read_bytes()).hexdigest()
    environment.write_text(json.dumps(held), encoding="utf-8")
