"""Runs that go wrong: one line that says so, and everything recorded before stays good."""

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from icl_jax.rundir import RunDir
from icl_jax.rundir.verify import problems
from tests.train.runs import (
    TINY,
    assert_same_run,
    command,
    compile_once,
    finish,
    folder_bytes,
    recorded,
    snapshot,
    start_cli,
    tiny_config,
    train_here,
)


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        compile_once(patch)
        yield


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unbroken") / "run"
    train_here(tiny_config(), path)
    return path


def _only_line(err: str) -> str:
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("icl-jax: ")
    return lines[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(path)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


# --- losses that are not finite ---

_DIVERGES = ("--optimizer.lr", "1e30", "--optimizer.clip-norm", "0", "--model.norm", "none")


def test_loss_that_is_not_finite(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, _, err = command("train", config_file, "--run", run, "--devices", "1", *_DIVERGES)
    assert status == 3
    # Warm-up: the first step moves the parameters by 1e30 / 3. What they give is known one step later.
    line = _only_line(err)
    assert line.startswith("icl-jax: step 1: the loss at position ")
    assert line.endswith("; the last good snapshot is step 0")
    loss = recorded(run)["loss"]
    assert loss.shape == (1, 17)
    assert np.isfinite(loss).all()
    assert list(problems(RunDir.open(str(run)))) == []
    assert command("verify", run)[0] == 0
    assert all(np.isfinite(values).all() for values in snapshot(run, 0).values())


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
    bad_step = int(_only_line(err).split("step ")[1].split(":")[0])
    assert bad_step > 1
    assert len(recorded(run)["loss"]) == bad_step
    last_good = int(err.strip().rpartition(" ")[2])
    assert last_good == bad_step - 1  # a snapshot at every step
    assert last_good in [entry.step for entry in RunDir.open(str(run)).manifest.read()]


# --- disks ---


def test_full_disk_then_room(config_file: Path, small_disk: Path, unbroken: Path) -> None:
    run = small_disk / "run"
    options = ("train", config_file, "--run", run, "--devices", "1")
    status, _, err = finish(start_cli(*options))  # for what libraries write to stderr past Python
    assert status == 2
    assert _only_line(err) == (
        "icl-jax: cannot write the run directory: No space left on device: what was recorded before stays readable;"
        " the same command resumes"
    )
    n_recorded = len(recorded(run)["loss"])
    assert 0 < n_recorded < 8
    np.testing.assert_array_equal(recorded(run)["loss"], recorded(unbroken)["loss"][:n_recorded])
    assert command("verify", run)[0] == 0
    # Full from the start as well.
    assert command(*options)[0] == 2
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert command(*options)[0] == 0
    assert_same_run(run, unbroken)


def test_disk_too_full_to_begin(config_file: Path, small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(bytes(296 * 1024))
    status, _, err = command("train", config_file, "--run", small_disk / "run", "--devices", "1")
    assert status == 2
    assert f"{small_disk / 'run'}: cannot write the run directory" in _only_line(err)


@contextlib.contextmanager
def _files_at_most(n_bytes: int) -> Iterator[None]:
    """Writing more to one file fails, as on a full disk, without the right to mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGXFSZ, handler)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_state_that_cannot_be_written(config_file: Path, tmp_path: Path) -> None:
    """A state has larger files than all the rest: the last save fails, and the same command mends it."""
    unlimited, run = tmp_path / "unlimited", tmp_path / "run"
    options = ("--devices", "1", "--model.d-model", "36", "--data.seed", "1")
    assert command("train", config_file, "--run", unlimited, *options)[0] == 0
    sizes = {file: file.stat().st_size for file in unlimited.rglob("*") if file.is_file()}
    largest = max(size for file, size in sizes.items() if "state" not in file.parts)
    assert max(sizes.values()) > largest + 1000
    with _files_at_most(largest + 1000):
        status, _, err = command("train", config_file, "--run", run, *options)
    assert status == 2
    assert "cannot write the run directory: File too large" in _only_line(err)
    assert len(recorded(run)["loss"]) == 8
    assert command("verify", run)[0] == 0
    assert command("train", config_file, "--run", run, *options)[0] == 0
    assert_same_run(run, unlimited)


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run", "/dev/null/run", "/dev/full"])
def test_run_that_cannot_be_made(config_file: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a regular file")
    path = tmp_path / place  # an absolute place stands for itself
    status, _, err = command("train", config_file, "--run", path, "--devices", "1")
    assert status == 2
    assert str(path) in _only_line(err)


def test_read_only_file_system(config_file: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    run = small_disk / "run"
    train_here(tiny_config(), run, stop_at=4)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = folder_bytes(run)
    for path in (run, small_disk / "new"):
        status, _, err = command("train", config_file, "--run", path, "--devices", "1")
        assert status == 2
        assert f"{path}: cannot write the run directory: Read-only file system" in _only_line(err)
    assert command("verify", run)[0] == 0
    assert folder_bytes(run) == before


# --- two of them, and one too many ---


def test_second_trainer_is_refused(config_file: Path, tmp_path: Path) -> None:
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
    assert _only_line(err) == f"icl-jax: {run}: another process is training in this run directory"
    # The first one did not notice.
    assert (first_status, first_err) == (0, "")
    assert "SIGTERM: state saved at step" in out


def test_second_start_of_a_finished_run_changes_nothing(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("train", config_file, "--run", run, "--devices", "1")
    assert command(*options)[0] == 0
    before = folder_bytes(run)
    status, out, err = command(*options)
    assert (status, err) == (0, "")
    assert out == f"{run}: already complete at step 8\n"
    assert folder_bytes(run) == before


def test_closed_standard_output_does_not_end_a_run(config_file: Path, tmp_path: Path, unbroken: Path) -> None:
    run = tmp_path / "run"
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = start_cli("train", config_file, "--run", run, "--devices", "1", stdout=write_end)
    os.close(write_end)
    status, _, err = finish(child)
    assert (status, err) == (0, "")
    assert list(problems(RunDir.open(str(run)))) == []
    assert len(recorded(run)["loss"]) == 8
