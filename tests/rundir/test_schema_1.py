"""A run directory of schema 1, made on 2026-11-27 and stopped at step 6 of 8: read, verified, analyzed, resumed."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import load_arrays, save_arrays
from icl_jax.rundir.verify import problems
from tests.train.runs import command, train_here


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "schema_1", tmp_path / "old")
    return tmp_path / "old"


def test_opens_verifies_and_is_analyzed(old_run: Path) -> None:
    run = RunDir.open(str(old_run))
    assert run.environment["schema_version"] == 1
    assert list(problems(run)) == []
    assert [entry.step for entry in run.manifest.read()] == [0, 2, 4]
    assert run.config.data.source == "repeats"
    assert run.load_record().sizes["step"] == 6
    status, _, err = command("analyze", old_run, "--only", "icl")
    assert (status, err) == (0, "")


def test_resumes_to_what_an_unbroken_run_gives(old_run: Path, tmp_path: Path) -> None:
    config = RunDir.open(str(old_run)).config
    assert train_here(config, old_run).step == 8
    train_here(config, tmp_path / "new")
    loss, expected = (RunDir.open(str(path)).load_record()["loss"].values for path in (old_run, tmp_path / "new"))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert list(problems(RunDir.open(str(old_run)))) == []


def test_a_changed_state_of_then_is_refused(old_run: Path) -> None:
    """Its SHA-256 is over all arrays whole."""
    run = RunDir.open(str(old_run))
    state = load_arrays(run.path / "state" / "6")
    state["params.W_E"] = state["params.W_E"] + np.float32(1)
    save_arrays(run.path / "state" / "6", state)
    with pytest.raises(UserError, match=r"state/6: SHA-256 differs .* without this folder the run resumes from"):
        train_here(run.config, old_run)
