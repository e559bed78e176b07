"""A trainer that goes wrong by itself or by its surroundings: one line, and every good step stays recorded."""

import datetime
import os
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import wandb

from icl_jax.rundir import RunDir
from icl_jax.rundir.verify import problems
from icl_jax.train import environment
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.watch import tracker as tracker_module
from tests.faults.conftest import Note
from tests.faults.test_storage import said
from tests.train.runs import (
    assert_same_run,
    command,
    finish,
    folder_bytes,
    only_line,
    recorded,
    snapshot,
    start_cli,
    tiny_config,
    train_here,
)
from tests.waiting import wait_for

# --- losses that are not finite ---

_DIVERGES = ("--optimizer.lr", "1e30", "--optimizer.clip-norm", "0", "--model.norm", "none")


def test_loss_that_is_not_finite(config_file: Path, tmp_path: Path, note: Note) -> None:
    run = tmp_path / "run"
    status, _, err = command("train", config_file, "--run", run, "--devices", "1", *_DIVERGES)
    assert status == 3
    # Warm-up: the first step moves the parameters by 1e30 / 3. What they give is known one step later.
    line = only_line(err)
    assert line.startswith("icl-jax: step 1: the loss at position ")
    assert line.endswith("; the last good snapshot is step 0")
    loss = recorded(run)["loss"]
    assert loss.shape == (1, 17)
    assert np.isfinite(loss).all()
    assert list(problems(RunDir.open(str(run)))) == []
    assert command("verify", run)[0] == 0
    assert all(np.isfinite(values).all() for values in snapshot(run, 0).values())
    note("loss that is not finite", said(err), "the bad step")


def test_record_before_a_bad_step_is_flushed(config_file: Path, tmp_path: Path) -> None:
    """The model breaks after some steps, and the record waits for an hour."""
    # Weight decay multiplies the parameters by -999 at every step.
    options = (
        "--optimizer.lr",
        "1",
        "--optimizer.warmup-steps",
        "0",
        "--optimizer.weight-decay",
        "1000",
        *_DIVERGES[2:],
    )
    run = tmp_path / "run"
    status, _, err = command(
        "train", config_file, "--run", run, "--devices", "1", *options, "--train.flush-every-s", "3600"
    )
    assert status == 3
    bad_step = int(only_line(err).split("step ")[1].split(":")[0])
    assert bad_step > 1
    assert len(recorded(run)["loss"]) == bad_step
    last_good = int(err.strip().rpartition(" ")[2])
    assert last_good == bad_step - 1  # a snapshot at every step
    assert last_good in [entry.step for entry in RunDir.open(str(run)).manifest.read()]


# --- two of them, and one too many ---


def test_second_trainer_is_refused(config_file: Path, tmp_path: Path, note: Note) -> None:
    run = tmp_path / "run"
    first = start_cli("train", config_file, "--run", run, "--devices", "1", "--train.n-steps", "100000")
    try:
        assert first.stdout is not None
        while "step " not in first.stdout.readline():
            assert first.poll() is None
        status, _, err = command("train", config_file, "--run", run, "--devices", "1", "--train.n-steps", "100000")
    finally:
        first.terminate()
        first_status, out, first_err = finish(first)
    assert status == 2
    assert only_line(err) == f"icl-jax: {run}: another process is writing into this run directory"
    # The first one did not notice.
    assert (first_status, first_err) == (0, "")
    assert "SIGTERM: state saved at step" in out
    note("two trainers on one RUN", said(err))


def test_second_start_of_a_finished_run_changes_nothing(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("train", config_file, "--run", run, "--devices", "1")
    assert command(*options)[0] == 0
    before = folder_bytes(run)
    status, out, err = command(*options)
    assert (status, err) == (0, "")
    assert out == f"{run}: already complete at step 8\n"
    assert folder_bytes(run) == before


def test_closed_standard_output_does_not_end_a_run(
    config_file: Path, tmp_path: Path, unbroken: Path, note: Note
) -> None:
    run = tmp_path / "run"
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = start_cli("train", config_file, "--run", run, "--devices", "1", stdout=write_end)
    os.close(write_end)
    status, _, err = finish(child)
    assert (status, err) == (0, "")
    assert_same_run(run, unbroken)
    note("standard output closed", "")


# --- memory, clocks, W&B ---


def test_out_of_memory(
    config_file: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Note
) -> None:
    """As an accelerator's compiler and allocator say it; a CPU kills the process or hangs instead."""
    run = tmp_path / "run"
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."

    def fails(*_args: object) -> None:
        raise jax.errors.JaxRuntimeError(message)

    with monkeypatch.context() as patch:
        patch.setattr(ParallelStep, "init_state", fails)
        status, _, err = command("train", config_file, "--run", run, "--devices", "1")
    assert status == 2
    assert "out of memory on cpu: RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm" in only_line(err)
    assert "; try more devices, a larger train.accum_steps" in err
    assert command("train", config_file, "--run", run, "--devices", "1")[0] == 0
    assert_same_run(run, unbroken)
    note("out of memory at compile or start (simulated)", said(err))


@pytest.mark.parametrize("jump_s", [-86400.0, 86400.0])
def test_clock_that_jumps(
    jump_s: float, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Note
) -> None:
    """By a day at every look: nothing that a run does waits for the time of day."""
    n_looks, real = 0, time.time

    def jumping() -> float:
        nonlocal n_looks
        n_looks += 1
        return real() + n_looks * jump_s

    class JumpingDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "JumpingDatetime":
            return cls.fromtimestamp(jumping(), tz)

    run = tmp_path / "run"
    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(environment.datetime, "datetime", JumpingDatetime)
    train_here(tiny_config(), run, stop_at=4)
    train_here(tiny_config(), run)
    assert n_looks > 0
    assert_same_run(run, unbroken)
    note(f"clock that jumps {'back' if jump_s < 0 else 'ahead'} a day at every look", "")


class _BrokenWandb:
    """A run of W&B that raises or hangs where it is told to."""

    offline, dir = True, "somewhere/wandb/offline-run/files"

    def __init__(self, place: str, kind: str, done: threading.Event) -> None:
        self.summary: dict[str, object] = {}
        self._place, self._kind, self._done = place, kind, done

    def strike(self, place: str) -> None:
        if place == self._place:
            if self._kind == "raises":
                raise OSError("W&B is down")
            wait_for(self._done)

    def define_metric(self, *_args: object, **_more: object) -> None:
        pass

    def log(self, *_args: object, **_more: object) -> None:
        self.strike("log")

    def finish(self, *_args: object, **_more: object) -> None:
        self.strike("finish")


@pytest.mark.parametrize("place", ["init", "log", "finish"])
@pytest.mark.parametrize("kind", ["raises", "hangs"])
def test_wandb_that(
    kind: str,
    place: str,
    config_file: Path,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    note: Note,
) -> None:
    done = threading.Event()
    broken = _BrokenWandb(place, kind, done)

    def init(**_arguments: Any) -> _BrokenWandb:
        broken.strike("init")
        return broken

    monkeypatch.setattr(wandb, "init", init)
    for name in ("INIT_TIMEOUT_S", "START_GRACE_S", "FINISH_TIMEOUT_S"):
        monkeypatch.setattr(tracker_module, name, 0.2)
    run = tmp_path / "run"
    options = ("--run", run, "--devices", "1", "--tracker.wandb", "offline")
    status, out, err = command("train", config_file, *options)
    done.set()
    assert (status, err) == (0, "")
    warnings = [line for line in out.splitlines() if line.startswith("W&B failed") or "wandb sync" in line]
    assert len(warnings) == 1, out
    assert_same_run(run, unbroken)
    note(f"W&B {kind} in {place}", said(warnings[0]))
