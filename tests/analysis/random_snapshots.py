"""Stacked parameters of several random models."""

import numpy as np

from icl_jax.config import Config, ModelConfig
from icl_jax.measures.measurement import Context, Measurement
from tests.data_configs import data_config
from tests.model.random_params import random_params


def stacked(config: ModelConfig, n_snapshots: int = 2) -> dict[str, np.ndarray]:
    each = [random_params(config, seed) for seed in range(n_snapshots)]
    return {name: np.stack([np.asarray(params[name]) for params in each]) for name in each[0]}


def context(model: ModelConfig, n_rows: int = 6) -> Context:
    """A context of random rows; BOS is token 0."""
    rng = np.random.default_rng(7)
    held_out = rng.integers(1, model.vocab_size, (n_rows, model.n_ctx + 1)).astype(np.int32)
    held_out[:, 0] = 0
    config = Config(model=model, data=data_config(phrase_len=2))
    return Context(config, held_out, np.arange(1, model.vocab_size, dtype=np.int32), bos_id=0, seed=0)


def check(measurement: Measurement, model: ModelConfig, params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is measured; its names and shapes must be those announced, NaN only where announced, batches no matter."""
    setting = context(model)
    assert measurement.why_not(setting) is None
    found = measurement.measure(setting, params)
    assert set(found) == set(measurement.variables)
    n_snapshots = len(params["W_E"])
    for name, variable in measurement.variables.items():
        assert found[name].shape[0] == n_snapshots, name
        assert found[name].ndim == 1 + len(variable.dims), name
        for dim, size in zip(variable.dims, found[name].shape[1:], strict=True):
            assert size == {"layer": model.n_layers, "head": model.n_heads}.get(dim.split("_")[0], size), (name, dim)
        if not variable.missing:
            assert np.isfinite(found[name]).all(), name
    alone = measurement.measure(setting, {name: value[-1:] for name, value in params.items()})
    for name, values in found.items():
        np.testing.assert_allclose(alone[name], values[-1:], rtol=1e-5, atol=1e-6, err_msg=name)
    return found
