"""Exported folders for the tests that open them with other libraries."""

from pathlib import Path

import pytest

from icl_jax.config import ModelConfig
from tests.analysis.small_runs import random_run
from tests.train.runs import command

T = 41
SIZES = {"n_layers": 2, "d_model": 24, "n_heads": 3, "n_ctx": T, "vocab_size": 37, "position_embedding": "learned"}
ODD = {"norm_position": "both", "d_mlp": 17, "smeared_keys": True, "norm": "layernorm"}
"""Of no class of `transformers`."""


@pytest.fixture
def own_remote_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `trust_remote_code` runs is copied to a folder of the test's own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def exported(folder: Path, model: ModelConfig) -> Path:
    """A snapshot of random parameters, as `icl-jax export --to transformers` writes it."""
    run = random_run(folder / "run", model, [3])
    status, _, err = command("export", run.path, "--to", "transformers", "--out", folder / "hub")
    assert (status, err) == (0, "")
    return folder / "hub" / "step3"
