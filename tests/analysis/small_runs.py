"""Run directories made without training: hand-built and random models saved as snapshots."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from icl_jax.config import Config, ModelConfig, OptimizerConfig, SnapshotConfig, TrainConfig
from icl_jax.rundir import HeldOut, RunDir
from tests.data_configs import data_config
from tests.hand_built import BOS, induction_model, repeated_rows
from tests.model.random_params import random_params


def config_of(model: ModelConfig, last_step: int) -> Config:
    return Config(
        model=model,
        data=data_config(phrase_len=2),
        train=TrainConfig(n_steps=last_step, batch_size=8),
        optimizer=OptimizerConfig(warmup_steps=0),
        snapshots=SnapshotConfig(n_linear=1, n_log=0),
    )


def make_run(
    path: Path, model: ModelConfig, snapshots: Mapping[int, Mapping], held_out: np.ndarray,
    tokenizer_json: str | None = None,
) -> RunDir:  # fmt: skip
    candidates = np.arange(1, model.vocab_size, dtype=np.int32)
    run = RunDir.create(
        str(path), config_of(model, max(1, *snapshots)), corpus_sha256="0" * 64,
        held_out=HeldOut(held_out, candidates, BOS), tokenizer_json=tokenizer_json,
    )  # fmt: skip
    for step, params in snapshots.items():
        run.save_snapshot(step, {name: np.asarray(value) for name, value in params.items()})
    return run


def random_rows(model: ModelConfig, n_rows: int, seed: int = 3) -> np.ndarray:
    rows = np.random.default_rng(seed).integers(1, model.vocab_size, (n_rows, model.n_ctx + 1)).astype(np.int32)
    rows[:, 0] = BOS
    return rows


def random_run(path: Path, model: ModelConfig, steps: Sequence[int], n_rows: int = 6) -> RunDir:
    snapshots = {step: random_params(model, seed) for seed, step in enumerate(steps)}
    return make_run(path, model, snapshots, random_rows(model, n_rows))


def hand_built_run(path: Path, n_ctx: int = 41, vocab_size: int = 24) -> RunDir:
    """The hand-built model of docs/measures.md, whose induction head's gain grows from 0 to all of it at steps 40-60.

    Rows: BOS and 10 distinct tokens four times, and the first of them once more, which is predicted last.
    """
    params, model = induction_model(n_ctx, vocab_size)
    gains = np.clip((np.arange(0, 101, 10) - 40) / 20, 0, 1)
    snapshots = {}
    for step, gain in zip(range(0, 101, 10), gains, strict=True):
        W_V = np.array(params["W_V"])
        W_V[1] *= gain
        snapshots[step] = {**params, "W_V": W_V}
    rows = repeated_rows(n_ctx, vocab_size=vocab_size, n_sequences=12, repeat_len=(n_ctx - 1) // 4)
    return make_run(path, model, snapshots, np.concatenate([rows, rows[:, 1:2]], axis=1))
