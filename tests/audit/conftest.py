"""A run that was trained here with a large learning rate, and another initialisation of the same model."""

from pathlib import Path

import numpy as np
import pytest

from icl_jax.audit.trajectory import layers_apart
from icl_jax.model.params import init_params
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from tests.train.runs import tiny_config, train_here

Series = dict[int, dict[str, np.ndarray]]
CONFIG = tiny_config(
    model={"d_model": 36, "smeared_keys": False},
    train={"n_steps": 120},
    optimizer={"lr": 0.03, "warmup_steps": 10},
    snapshots={"n_linear": 30, "n_log": 15},
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory, to look at."""
    quiet_orbax()
    path = tmp_path_factory.mktemp("audit") / "run"
    train_here(CONFIG, path)
    return path


@pytest.fixture(scope="session")
def clean(trained: Path) -> Series:
    """Its tensors by step, to copy."""
    run = RunDir.open(str(trained))
    return {entry.step: layers_apart(run.load_params(entry.step), CONFIG.model) for entry in run.manifest.read()}


@pytest.fixture(scope="session")
def other_start() -> dict[str, np.ndarray]:
    """Step 0 of another seed."""
    params = {name: np.asarray(array) for name, array in init_params(CONFIG.model, 99).items()}
    return layers_apart(params, CONFIG.model)
