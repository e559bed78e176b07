"""`icl-jax branch`: what goes on from a snapshot is the parent's in every bit, or says what is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_jax.data import open_corpus
from icl_jax.data.corpora.repeats import RepeatsCorpus
from icl_jax.rundir import RunDir
from icl_jax.train.branch import BRANCH, open_branch
from tests.train.runs import (
    assert_same_run,
    command,
    final_state,
    only_line,
    recorded,
    snapshot,
    tiny_config,
    train_here,
)

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With full states of steps 4 and 8, and snapshots of all steps from 0 to 8."""
    path = tmp_path_factory.mktemp("parent") / "run"
    assert train_here(tiny_config(), path, stop_at=4).step == 4
    assert train_here(tiny_config(), path).step == 8
    return path


def _branched(parent: Path, step: int, run: Path, *more: str) -> tuple[str, dict[str, Any]]:
    status, out, err = command("branch", parent, "--at", str(step), "--run", run, "--devices", "1", *more)
    assert (status, err) == (0, "")
    said = RunDir.open(str(run)).environment[BRANCH]
    entry = RunDir.open(str(parent)).snapshot(step)
    first = RunDir.open(str(run)).snapshot(0 if "--anew" in more else step)
    assert (said["step"], said["tokens"], said["sha256"]) == (step, entry.tokens, entry.sha256)
    assert first.sha256 == entry.sha256
    assert said["run_id"] == RunDir.open(str(parent)).run_id
    assert command("verify", run)[0] == 0
    return out, said


def test_unchanged_from_a_full_state_it_is_the_parent_again(parent: Path, tmp_path: Path) -> None:
    out, said = _branched(parent, 4, tmp_path / "run")
    assert f"{tmp_path / 'run'}: step 4 of {parent}; from its full state; no field changed" in out
    assert (said["fresh"], said["changed_fields"]) == ([], {})
    assert_same_run(tmp_path / "run", parent)
    assert RunDir.open(str(tmp_path / "run")).run_id != said["run_id"]


def test_without_a_full_state_the_optimiser_is_fresh(parent: Path, tmp_path: Path) -> None:
    for name, step, more in (("3", 3, ()), ("4", 4, ("--fresh-optimizer",))):
        out, said = _branched(parent, step, tmp_path / name, *more)
        assert "fresh: optimiser state" in out
        assert said["fresh"][0].startswith("optimiser state")
        ours, theirs = recorded(tmp_path / name), recorded(parent)
        np.testing.assert_array_equal(ours["loss"][: step + 1], theirs["loss"][: step + 1])  # the same rows go on
        np.testing.assert_array_equal(ours["lr"], theirs["lr"])
        assert not np.array_equal(ours["loss"][step + 1], theirs["loss"][step + 1])


def test_a_changed_field_acts_from_there_on(parent: Path, tmp_path: Path) -> None:
    out, said = _branched(parent, 4, tmp_path / "run", "--optimizer.lr", "0.02")
    assert "from its full state; optimizer.lr = 0.02" in out
    assert said["changed_fields"] == {"optimizer.lr": [0.003, 0.02]}
    ours, theirs = recorded(tmp_path / "run"), recorded(parent)
    np.testing.assert_array_equal(ours["loss"][:5], theirs["loss"][:5])
    np.testing.assert_array_equal(ours["lr"][:4], theirs["lr"][:4])
    assert (ours["lr"][4:] > theirs["lr"][4:]).all()
    for probe in np.flatnonzero(theirs["probe_step"] < 4):
        np.testing.assert_array_equal(ours["prefix_matching"][probe], theirs["prefix_matching"][probe])


def test_anew_the_snapshot_is_step_0(parent: Path, tmp_path: Path) -> None:
    args = ("--anew", "--train.n-steps", "3", "--train.batch-size", "4", "--snapshots.n-linear", "3")
    out, _ = _branched(parent, 4, tmp_path / "run", *args)
    assert "fresh: optimiser state, count of steps; train.n_steps = 3" in out
    np.testing.assert_array_equal(snapshot(tmp_path / "run", 0)["W_Q"], snapshot(parent, 4)["W_Q"])
    assert int(final_state(tmp_path / "run")["step"]) == 3
    status, out, _ = command("branch", parent, "--at", "4", "--run", tmp_path / "run", "--devices", "1", *args)
    assert status == 0
    assert "already complete at step 3" in out


def test_a_branch_that_was_killed_at_its_start_is_made_whole(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    args = ("branch", parent, "--at", "4", "--run", tmp_path / "run", "--devices", "1")
    with monkeypatch.context() as patch:
        patch.setattr(RunDir, "save_state", killed)
        assert command(*args)[0] == 130
    status, _, err = command("train", tmp_path / "run" / "config.toml", "--run", tmp_path / "run", "--devices", "1")
    assert status == 2
    assert "lacks what it begins with: icl-jax branch" in only_line(err)
    assert command(*args)[0] == 0
    assert_same_run(tmp_path / "run", parent)


def test_what_is_to_be_known_of_the_rows_is_said(parent: Path) -> None:
    branch, config = open_branch(str(parent), 4), tiny_config()
    corpus = open_corpus(config)
    assert list(branch.notes(config, corpus)) == []

    class Text(RepeatsCorpus):
        bos_id, n_rows = 5, 100

    assert list(branch.notes(tiny_config(data={"seed": 1}), Text(config))) == [
        f"rows begin with '5' (id 5), those of {parent} with '0' (id 0)",
        f"held-out rows are drawn anew: {parent} was trained on most of them",
    ]


def test_what_cannot_be_branched_is_one_line(parent: Path, tmp_path: Path) -> None:
    train_here(tiny_config(train={"seed": 1}), tmp_path / "other")
    new = str(tmp_path / "new")
    cases = {
        ("--at", "99", "--run", new): "no snapshot of step 99; the nearest are",
        ("--at", "8", "--run", new): "--at = 8: must be less than train.n_steps = 8, or --anew",
        ("--at", "4", "--run", new, "--train.n-steps", "9"): "train.n_steps = 9: must be 8, for the steps before are",
        ("--at", "4", "--run", new, "--probes.n-probes", "2"): "probes.n_probes = 2: must be 4",
        ("--at", "4", "--run", new, "--model.d-model", "24"): "has the shape",
        ("--at", "4", "--run", new, "--anew", "--model.n-layers", "3"): "has the shape",
        ("--at", "4", "--run", str(tmp_path / "other")): "is a run with another config (train.seed: 1 != 0)",
        ("--at", "4", "--run", str(parent)): "is a run that does not begin there: give --run another path",
        ("--at", "4", "--run", ""): "--run = '': must be a path",
        ("--run", new): "--at is missing",
    }
    for args, said in cases.items():
        status, _, err = command("branch", parent, "--devices", "1", *args)
        assert status == 2, args
        assert said in only_line(err)
        assert not Path(new).exists()
    assert "RUN must come first" in only_line(command("branch", "--at", "4")[2])
    moved = Path(shutil.copytree(parent, tmp_path / "moved"))
    environment = json.loads((moved / "environment.json").read_text())
    (moved / "environment.json").write_text(json.dumps(environment | {"corpus_sha256": "0" * 64}))
    args = ("branch", moved, "--at", "4", "--run", new, "--devices", "1")
    assert f"{moved}: its corpus has changed since; --anew takes it" in only_line(command(*args)[2])
    assert "no such run directory" in only_line(command("branch", tmp_path / "none", "--at", "4", "--run", new)[2])
