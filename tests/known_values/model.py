"""What the known values of docs/measures.md are computed on: the hand-built model, an untrained and a uniform one."""

import functools
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import xarray as xr

from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import Config, ModelConfig
from icl_jax.measures import (
    held_out_loss,
)
from icl_jax.measures.measurement import Context, Measurement
from icl_jax.model.params import init_params
from tests.analysis.small_runs import hand_built_run
from tests.data_configs import data_config
from tests.hand_built import induction_model, repeated_rows

V, N_CTX, LATER = 64, 101, slice(26, 100)
Found = dict[tuple[str, str], float]
Arrays = dict[str, np.ndarray]


def setting_of(model: ModelConfig, rows: np.ndarray, labels: np.ndarray | None = None) -> Context:
    names = () if labels is None else ("said_again",)
    config = Config(model=model, data=data_config(phrase_len=2))
    return Context(config, rows, np.arange(1, V, dtype=np.int32), 0, 0, None, names, labels)


def measured(measurement: Measurement, setting: Context, params: dict) -> Arrays:
    found = measurement.measure(setting, {name: np.asarray(value)[None] for name, value in params.items()})
    return {name: values[0] for name, values in found.items()}


@functools.cache
def hand_built() -> tuple[dict, Context]:
    """The model; its rows say 25 tokens four times and the first of them again, labelled from the second time on."""
    params, model = induction_model(N_CTX, V)
    rows = repeated_rows(N_CTX)
    rows = np.concatenate([rows, rows[:, 1:2]], axis=1)
    labels = np.zeros(rows.shape, np.uint8)
    labels[:, 27:] = 1
    return params, setting_of(model, rows, labels)


def of_hand_built(measurement: Measurement) -> Arrays:
    params, setting = hand_built()
    return measured(measurement, setting, params)


UNTRAINED = ModelConfig(n_layers=2, d_model=48, n_heads=3, n_ctx=N_CTX, vocab_size=V)


def of_untrained(measurement: Measurement) -> Arrays:
    return measured(measurement, setting_of(UNTRAINED, hand_built()[1].held_out), init_params(UNTRAINED, seed=0))


def of_uniform(measurement: Measurement) -> Arrays:
    params, setting = hand_built()
    return measured(measurement, setting, {**params, "W_U": np.zeros_like(params["W_U"])})


@functools.cache
def growing() -> xr.Dataset:
    """Analysis of a run whose head 1.0 grows from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        only = ["phase_change", "token_classes", "ablation_effects", "set_ablation", "set_sizes", "shuffled_context"]
        return analyze(hand_built_run(Path(folder) / "run"), only=only).load()


@functools.cache
def hand_built_loss() -> np.ndarray:
    params, setting = hand_built()
    return np.asarray(held_out_loss.held_out_loss(params, setting.held_out, setting.config.model)).mean(axis=0)


def uniform_attention(n_ctx: int) -> jnp.ndarray:
    return jnp.asarray((np.tri(n_ctx) / np.arange(1, n_ctx + 1)[:, None])[None, None], jnp.float32)


def zeros(setting: Context) -> dict[str, np.ndarray]:
    """A model whose attention and predictions are uniform, as one snapshot."""
    params = init_params(setting.config.model, 0)
    return {name: np.zeros((1, *value.shape), np.float32) for name, value in params.items()}


WEIGHTS = ("W_E", "W_Q", "W_K", "W_V", "W_O")
