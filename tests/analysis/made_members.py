"""A run with members that was never trained: its record holds changes that were put there, at known places."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from icl_jax.config import MembersConfig, ModelConfig, ProbeConfig, TrainConfig
from icl_jax.rundir import HeldOut, RunDir, probe_steps
from icl_jax.rundir.record import ProbeResult, StepBlock
from tests.analysis.small_runs import BOS, config_of, random_rows
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=29, vocab_size=31)
N_STEPS, BATCH = 400, 8
TOKENS = N_STEPS * BATCH * MODEL.n_ctx
SCALE = TOKENS / 60
"""Of the logistic step: from a tenth to nine tenths it takes 4.4 times as long."""
DEPTH = 1.0


def made_members(
    path: Path, places: np.ndarray, *, snapshots: tuple[int, ...] = (0, 100, 200, 300, 400), seed: int = 0
) -> RunDir:
    """places: tokens at which half of each member's change is done; inf: it has none. Better heads change earlier."""
    n, rng = len(places), np.random.default_rng(seed)
    config = replace(
        config_of(MODEL, N_STEPS),
        train=TrainConfig(n_steps=N_STEPS, batch_size=BATCH), members=MembersConfig(seeds=f"0..{n - 1}"),
        probes=ProbeConfig(n_probes=60, held_out_rows=1, n_sequences=2, repeat_len=7, n_repeats=2),
    )  # fmt: skip
    # One row: more of them would have to agree that a change is there, and the snapshots know nothing of the record's.
    held_out = HeldOut(random_rows(MODEL, 1), np.arange(1, MODEL.vocab_size, dtype=np.int32), BOS)
    run = RunDir.create(str(path), config, corpus_sha256="0" * 64, held_out=held_out)
    for i, step in enumerate(snapshots):
        each = [random_params(MODEL, 10 * k + i) for k in range(n)]
        run.save_snapshot(step, {name: np.stack([one[name] for one in each]) for name in each[0]})
    record = run.open_record()
    steps = np.arange(N_STEPS)
    flat = np.ones((N_STEPS, n), np.float32)
    shape = (N_STEPS, n, MODEL.n_ctx)
    falling = np.broadcast_to(3.4 - 0.4 * np.tanh(steps / 80)[:, None, None], shape).astype(np.float32)
    record.write_steps(
        StepBlock(first_step=0, loss=falling, lr=3e-3 * flat, grad_norm=flat, step_s=np.ones(N_STEPS, np.float32))
    )
    heads = (n, MODEL.n_layers, MODEL.n_heads)
    for step in probe_steps(config):
        tokens = step * config.tokens_per_step
        done = 1 / (1 + np.exp(-np.clip((tokens - places) / SCALE, -60, 60)))
        icl = -0.2 * (1 - np.exp(-tokens / TOKENS * 8)) - DEPTH * done + 0.004 * rng.normal(size=n)
        scores = {"prefix_matching": np.full(heads, 0.02), "previous_token": np.full(heads, 0.03)}
        scores["prefix_matching"][np.arange(n), 1, np.arange(n) % 3] += 0.6 * done
        ahead = np.exp(-np.where(np.isfinite(places), places, TOKENS) / TOKENS)
        scores["previous_token"][np.arange(n), 0, 2] += 0.3 * ahead + 0.4 * done
        loss = (3.2 + icl)[:, None] + np.zeros(MODEL.n_ctx)
        scores |= {"icl_score": icl, "icl_windowed": icl, "icl_score_sem": 0.1 + 0 * icl, "icl_sem": 0.05 + 0 * icl}
        record.write_probe(ProbeResult(step=step, held_out_loss=loss, **scores))
    return run
