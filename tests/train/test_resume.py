"""A run that is stopped or killed and started again equals, bit for bit, one that was never broken."""

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.data import open_corpus
from icl_jax.rundir import RunDir, snapshots, states
from icl_jax.rundir import run as run_module
from icl_jax.rundir.manifest import Manifest
from icl_jax.rundir.record import Record
from icl_jax.train.start import open_or_create
from tests.train.runs import (
    TINY,
    assert_same_run,
    command,
    final_state,
    finish,
    folder_bytes,
    has_snapshot,
    snapshot,
    start_cli,
    tiny_config,
    train_here,
    train_long,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    assert train_here(tiny_config(), path).step == 8
    return path


def test_unbroken_run_is_repeatable_and_goes_somewhere(unbroken: Path, tmp_path: Path) -> None:
    train_here(tiny_config(), tmp_path / "again")
    assert_same_run(tmp_path / "again", unbroken)
    state = final_state(unbroken)
    assert int(state["step"]) == 8
    for name, first in snapshot(unbroken, 0).items():
        assert not np.array_equal(state[f"params.{name}"], first), name  # else nothing could be lost


@pytest.mark.parametrize("stop_at", range(9))
def test_stop_at_every_step(unbroken: Path, tmp_path: Path, stop_at: int) -> None:
    run = tmp_path / "run"
    # Nothing is flushed for its own sake: a state must bring the record with it.
    outcome = train_here(tiny_config(train={"flush_every_s": 3600.0}), run, stop_at=stop_at)
    # A signal after the last step changes nothing any more.
    assert (outcome.step, outcome.signum) == ((stop_at, signal.SIGTERM) if stop_at < 8 else (8, 0))
    assert RunDir.open(str(run)).last_state_step() == stop_at
    train_here(tiny_config(), run)
    assert_same_run(run, unbroken)


def test_stop_again_and_again(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for stop_at in (0, 0, 1, 2, 2, 3, 5, 7, 7):
        assert train_here(tiny_config(), run, stop_at=stop_at).step == stop_at
    train_here(tiny_config(), run)
    assert_same_run(run, unbroken)


def test_keeps_as_many_states_as_the_config_says(tmp_path: Path) -> None:
    config = tiny_config(snapshots={"state_every_s": 1e-9, "keep_states": 3})
    train_here(config, tmp_path / "run")
    assert sorted(int(p.name) for p in (tmp_path / "run" / "state").iterdir()) == [6, 7, 8]


class _Killed(BaseException):
    """Stands for kill -9 at a chosen place: nothing of the run directory's code runs after it."""


def _kill_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool) -> None:
    """Let the `call`-th call of a function do its work (`after`) or not, and no more of this run's."""
    n_calls = 0
    original: Callable[..., Any] = getattr(owner, name)

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call and not after:
            raise _Killed
        result = original(*args, **kwargs)
        if n_calls == call:
            raise _Killed
        return result

    patch.setattr(owner, name, killing)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", [1, 5])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(snapshots, "save_arrays"), (Manifest, "add"), (Record, "write_steps"), (Record, "write_probe")],
    ids=["save_arrays", "manifest", "steps", "probe"],
)
def test_killed_around_a_write(unbroken: Path, tmp_path: Path, owner: Any, name: str, call: int, after: bool) -> None:
    config = tiny_config(snapshots={"state_every_s": 1e-9, "keep_states": 1})
    run = tmp_path / "run"
    call = min(call, 4) if name == "write_probe" else call
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, owner, name, call, after=after)
        with pytest.raises(UserError, match="_Killed"):
            train_here(config, run)
    train_here(config, run)
    assert_same_run(run, unbroken)


def test_a_state_that_is_being_saved_is_done_with_when_a_failed_run_ends(tmp_path: Path) -> None:
    """Whatever failed: what Orbax still wrote would come between the removals of the resume."""
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, Record, "write_steps", 1, after=True)
        patch.setattr(states, "save_sharded", partial(_slowly, states.save_sharded))
        with pytest.raises(UserError, match="_Killed"):
            train_here(tiny_config(snapshots={"state_every_s": 1e-9}), tmp_path / "run")
    assert [thread.name for thread in threading.enumerate() if thread.name == "async_save"] == []


def _slowly(save: Callable[..., Any], path: Any, arrays: Any, may_appear: Callable[[], object]) -> Any:
    def wait() -> None:
        time.sleep(0.5)
        may_appear()

    return save(path, arrays, wait)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", ["replace_text", "record"])
def test_killed_while_the_run_directory_is_made(
    unbroken: Path, tmp_path: Path, place: str, call: int, after: bool
) -> None:
    run = tmp_path / "run"
    owner, name = (run_module, "replace_text") if place == "replace_text" else (Record, "__init__")
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, owner, name, call, after=after)
        with pytest.raises(_Killed):
            train_here(tiny_config(), run)
    train_here(tiny_config(), run)
    assert_same_run(run, unbroken)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Record, "cut"), (Manifest, "write"), (run_module, "remove_partial"), (run_module, "saved_steps")],
    ids=["record", "manifest", "partial", "folders"],
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_while_it_is_cut_back(unbroken: Path, tmp_path: Path, owner: Any, name: str, after: bool) -> None:
    run = tmp_path / "run"
    train_here(tiny_config(), run, stop_at=3)
    # Steps 3 to 5 are then recorded without a state after them.
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, Record, "write_steps", 3, after=True)
        with pytest.raises(UserError, match="_Killed"):
            train_here(tiny_config(), run)
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, owner, name, 1 if name != "saved_steps" else 2, after=after)
        with pytest.raises(_Killed):
            train_here(tiny_config(), run)
    train_here(tiny_config(), run)
    assert_same_run(run, unbroken)


def test_what_a_kill_left_of_a_complete_run_goes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(tiny_config(), run)
    left = run / "state" / "3.orbax-checkpoint-tmp-removed"
    left.mkdir()
    train_here(tiny_config(), run)
    assert not left.exists()


def test_what_came_after_the_state_is_cut_off(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(tiny_config(), run, stop_at=3)
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, Manifest, "add", 3, after=True)
        with pytest.raises(UserError, match="_Killed"):
            train_here(tiny_config(), run)
    longer = RunDir.open(str(run)).load_record()
    assert longer.sizes["step"] > 3
    assert longer["probe_step"].values.tolist() == [0, 3]
    assert RunDir.open(str(run)).manifest.read()[-1].step == 5
    config = tiny_config()
    cut = open_or_create(str(run), config, open_corpus(config))
    record = cut.load_record()
    assert record.sizes["step"] == 3
    assert record["probe_step"].values.tolist() == [0]
    assert [entry.step for entry in cut.manifest.read()] == [0, 1, 2]
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == ["0", "1", "2"]


def test_half_saved_folders_and_chunks_are_removed(unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_here(tiny_config(), run, stop_at=3)
    for half in (
        "snapshots/2.orbax-checkpoint-tmp",
        "snapshots/3.orbax-checkpoint-tmp-17",
        "state/4.orbax-checkpoint-tmp",
    ):
        (run / half / "d").mkdir(parents=True)
        (run / half / "d" / "data").write_bytes(b"half")
    (run / "record.zarr" / "loss" / "c" / "0" / "0.0123456789abcdef.partial").write_bytes(b"half")
    (run / ".manifest.jsonl.partial").write_text('{"step": 0,')
    train_here(tiny_config(), run)
    assert_same_run(run, unbroken)


def test_a_resume_notes_the_fields_that_are_not_as_the_run_began(tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "tiny.toml"
    config.write_text(TINY)
    train_here(tiny_config(), run, stop_at=3)
    assert command("train", config, "--run", run, "--devices", "1", "--train.flush-every-s", "7")[0] == 0
    (start,) = RunDir.open(str(run)).environment["starts"]
    assert start["changed_fields"] == {"train.flush_every_s": 7.0}
    assert RunDir.open(str(run)).config == tiny_config()


def test_finished_run_is_left_alone(unbroken: Path) -> None:
    before = folder_bytes(unbroken)
    train_here(tiny_config(), unbroken)
    assert folder_bytes(unbroken) == before


# --- through the command line, in processes of their own ---


@pytest.fixture(scope="module")
def long_unbroken(long_config: Path) -> Path:
    return train_long(long_config, n_devices=2)


def test_killed_at_five_random_moments(long_config: Path, long_unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = np.random.default_rng(20260714)
    command = ("train", long_config, "--run", run, "--devices", "2")
    for low in (0, 40, 80, 120, 160):  # one in each stretch, so that every start gets somewhere
        process = start_cli(*command)
        step = int(moments.integers(low, low + 40))
        wait_until(partial(has_snapshot, run, step), process)
        time.sleep(moments.uniform(0, 0.05))  # snapshots take longer than steps: away from their ends
        process.kill()
        assert finish(process)[0] == -signal.SIGKILL
    status, out, err = finish(start_cli(*command))
    assert (status, err) == (0, "")
    assert "resumes at step" in out
    assert_same_run(run, long_unbroken)


def test_stopped_by_sigterm_and_by_sigint(long_config: Path, long_unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    again = ["train", str(long_config), "--run", str(run), "--devices", "2"]
    for signum, expected_status, snapshot_step in ((signal.SIGTERM, 0, 70), (signal.SIGINT, 130, 170)):
        process = start_cli(*again)
        wait_until(partial(has_snapshot, run, snapshot_step), process)
        process.send_signal(signum)
        status, out, err = finish(process)
        assert (status, err) == (expected_status, "")
        step = RunDir.open(str(run)).last_state_step()
        assert step is not None
        assert snapshot_step <= step < 300
        said, _, command = out.strip().splitlines()[-1].partition("; resume with: icl-jax ")
        assert said == f"{signum.name}: state saved at step {step}"
        again = command.split()
    status, out, err = finish(start_cli(*again))
    assert (status, err) == (0, "")
    assert_same_run(run, long_unbroken)
