"""Making, opening, filling and cutting back a run directory."""

import json
from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.rundir import SCHEMA_VERSION, SCHEMA_VERSION_MEMBERS, RunDir, snapshot_steps
from icl_jax.rundir.checkpoints import load_arrays, save_arrays, saved_steps
from icl_jax.rundir.manifest import params_sha256
from tests.rundir.made_run import make_run, params_of, run_config, state_of

CONFIG = run_config()
SNAPSHOTS = [0, 1, 4, 7, 11]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path / "run", CONFIG)


def test_a_run_opens_as_it_was_made(run: RunDir) -> None:
    again = RunDir.open(str(run.path))
    assert again == run
    assert again.config == CONFIG
    assert len(again.run_id) == 8
    assert int(again.run_id, 16) >= 0
    assert again.environment["schema_version"] == SCHEMA_VERSION
    assert again.environment["corpus_sha256"] == "c0"
    assert (run.path / "tokenizer.json").read_text(encoding="utf-8") == '{"a": "ä"}'
    names = {path.name for path in run.path.iterdir()} - {"held_out.zarr"}
    assert names == {
        "config.toml", "environment.json", "tokenizer.json", "record.zarr", "snapshots", "state", "manifest.jsonl",
    }  # fmt: skip


def test_two_runs_have_two_ids(tmp_path: Path) -> None:
    a, b = (RunDir.create(str(tmp_path / name), CONFIG, corpus_sha256="c0") for name in "ab")
    assert a.run_id != b.run_id
    assert not (a.path / "tokenizer.json").exists()


def test_starts_add_up(run: RunDir) -> None:
    run.add_start({"step": 0})
    again = RunDir.open(str(run.path))
    again.add_start({"step": 5})
    assert RunDir.open(str(run.path)).environment["starts"] == [{"step": 0}, {"step": 5}]
    assert RunDir.open(str(run.path)).run_id == run.run_id


def test_snapshots_load_as_they_were_saved(run: RunDir) -> None:
    entries = run.manifest.read()
    assert [entry.step for entry in entries] == SNAPSHOTS == snapshot_steps(CONFIG)
    for entry in entries:
        params = run.load_params(entry.step)
        assert set(params) == {"W_E", "ln_final_w"}
        for name, value in params_of(entry.step).items():
            np.testing.assert_array_equal(params[name], value)
        assert entry.tokens == entry.step * 5 * 7
        assert entry.n_bytes == 4 * (29 * 12 + 12)
        assert entry.sha256 == params_sha256(params_of(entry.step))


def test_a_step_without_a_snapshot_is_answered_with_the_nearest(run: RunDir) -> None:
    with pytest.raises(UserError, match=r"no snapshot of step 5; the nearest are 4, 7, 1$"):
        run.load_params(5)


def test_swapped_and_changed_snapshots_do_not_load(run: RunDir) -> None:
    folder = run.path / "snapshots"
    (folder / "1").rename(folder / "x")
    (folder / "4").rename(folder / "1")
    (folder / "x").rename(folder / "4")
    with pytest.raises(UserError, match="it holds the parameters of step 4"):
        run.load_params(1)
    with pytest.raises(UserError, match="it holds the parameters of step 1"):
        run.load_params(4)
    (folder / "7").rmtree()
    with pytest.raises(UserError, match="missing"):
        run.load_params(7)


def test_parameters_of_another_run_do_not_load(run: RunDir, tmp_path: Path) -> None:
    other = RunDir.create(str(tmp_path / "other"), CONFIG, corpus_sha256="c0")
    other.save_snapshot(7, params_of(1000))
    (run.path / "snapshots" / "7").rmtree()
    (other.path / "snapshots" / "7").rename(run.path / "snapshots" / "7")
    with pytest.raises(UserError, match="its contents have changed"):
        run.load_params(7)


def test_only_the_last_states_are_kept(run: RunDir) -> None:
    assert saved_steps(run.path / "state") == [9, 11]
    assert run.last_state_step() == 11
    run.save_state(12, state_of(12))
    assert saved_steps(run.path / "state") == [11, 12]
    for name, value in state_of(12).items():
        np.testing.assert_array_equal(run.load_state(12)[name], value)


def test_a_changed_state_is_refused(run: RunDir) -> None:
    """One bit of one element, as the checksums of its arrays were saved with it."""
    path = run.path / "state" / "11"
    saved = load_arrays(path)
    for name in state_of(11):
        if name == "step":
            continue
        bits = saved[name].copy().view(np.uint32)
        bits.flat[bits.size // 2] ^= np.uint32(1 << 31)
        save_arrays(path, saved | {name: bits.view(saved[name].dtype)})
        with pytest.raises(UserError, match=rf"state/11: {name}'s checksum differs .*: its contents have changed"):
            run.load_state(11)
    save_arrays(path, {name: value for name, value in saved.items() if not name.startswith("params")})
    with pytest.raises(UserError, match="its contents have changed"):
        run.load_state(11)


def test_a_run_without_states_resumes_from_nowhere(tmp_path: Path) -> None:
    assert RunDir.create(str(tmp_path / "run"), CONFIG, corpus_sha256="c0").last_state_step() is None


@pytest.mark.parametrize(("step", "snapshots", "states"), [(9, [0, 1, 4, 7], [9]), (11, [0, 1, 4, 7], [9, 11])])
def test_cut_goes_back_to_before_that_step(run: RunDir, step: int, snapshots: list[int], states: list[int]) -> None:
    """A step's state stays, its snapshot goes: the step is taken again from the state."""
    (run.path / "snapshots" / "9.orbax-checkpoint-tmp-1").mkdir()
    run.cut(step)
    assert run.load_record().sizes["step"] == step
    assert [entry.step for entry in run.manifest.read()] == snapshots
    assert saved_steps(run.path / "snapshots") == snapshots
    assert saved_steps(run.path / "state") == states
    assert sorted(p.name for p in (run.path / "snapshots").iterdir()) == [str(s) for s in snapshots]


def test_create_takes_an_empty_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert RunDir.is_run(str(RunDir.create(str(tmp_path / "empty"), CONFIG, corpus_sha256="c0").path))
    with pytest.raises(UserError, match="empty"):
        RunDir.create(str(tmp_path / "empty"), CONFIG, corpus_sha256="c0")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        RunDir.create(str(tmp_path / "mine"), CONFIG, corpus_sha256="c0")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="file"):
        RunDir.create(str(tmp_path / "mine" / "thesis.tex"), CONFIG, corpus_sha256="c0")
    with pytest.raises(UserError, match="cannot write"):
        RunDir.create(str(tmp_path / "mine" / "thesis.tex" / "run"), CONFIG, corpus_sha256="c0")


def test_open_says_what_is_missing(tmp_path: Path, run: RunDir) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        RunDir.open(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no config\.toml"):
        RunDir.open(str(tmp_path))
    (run.path / "config.toml").write_text("[model]\nn_layer = 2\n")
    with pytest.raises(UserError, match=r"config\.toml.*did you mean 'n_layers'"):
        RunDir.open(str(run.path))
    (run.path / "config.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"config\.toml"):
        RunDir.open(str(run.path))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"schema_version": "1", "run_id": "a", "starts": []}',
             '{"schema_version": true, "run_id": "a", "starts": []}', '{"schema_version": 1, "run_id": "a"}'],
)  # fmt: skip
def test_a_damaged_environment_is_a_user_error(run: RunDir, text: str) -> None:
    (run.path / "environment.json").write_text(text)
    with pytest.raises(UserError, match=r"environment\.json"):
        RunDir.open(str(run.path))
    (run.path / "environment.json").unlink()
    with pytest.raises(UserError, match=r"environment\.json"):
        RunDir.open(str(run.path))


def test_a_newer_schema_is_refused(run: RunDir) -> None:
    environment = dict(run.environment, schema_version=SCHEMA_VERSION_MEMBERS + 1)
    (run.path / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(UserError, match=f"schema_version = {SCHEMA_VERSION_MEMBERS + 1}: .*install a newer"):
        RunDir.open(str(run.path))
