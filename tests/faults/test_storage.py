"""Disks that fill up, cannot be written or lose what was written: one line that says so, and nothing good is lost."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import load_arrays
from tests.faults.conftest import Note
from tests.train.runs import (
    TINY,
    assert_same_run,
    command,
    finish,
    folder_bytes,
    only_line,
    recorded,
    start_cli,
    tiny_config,
    train_here,
)


def said(err: str) -> str:
    """The line without the program's name and this machine's paths."""
    line = err.strip().splitlines()[-1].removeprefix("icl-jax: ").removeprefix("WARNING:icl_jax.data:")
    return " ".join("…/" + word.rpartition("/")[2] if word.startswith("/") else word for word in line.split())[:110]


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


def test_full_disk_then_room(config_file: Path, small_disk: Path, unbroken: Path, note: Note) -> None:
    run = small_disk / "run"
    options = ("train", config_file, "--run", run, "--devices", "1")
    status, _, err = finish(start_cli(*options))  # for what libraries write to stderr past Python
    assert status == 2
    assert only_line(err) == (
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
    note("full disk", said(err), f"steps {n_recorded} to 7 done again")


def test_disk_too_full_to_begin(config_file: Path, small_disk: Path) -> None:
    (small_disk / "filling").write_bytes(bytes(296 * 1024))
    status, _, err = command("train", config_file, "--run", small_disk / "run", "--devices", "1")
    assert status == 2
    assert f"{small_disk / 'run'}: cannot write the run directory" in only_line(err)


@contextlib.contextmanager
def _files_at_most(n_bytes: int) -> Iterator[None]:
    """Writing more to one file fails, as on a full disk, without the right to mount one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def _too_large_is_an_error() -> Iterator[None]:
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("_too_large_is_an_error")
def test_state_that_cannot_be_written(
    config_file: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Note
) -> None:
    """The last save fails, all before it is kept, and the same command mends it."""
    run = tmp_path / "run"
    begin_state = RunDir.begin_state

    # How large Orbax's files are is not the same in every run, so the quota begins where the state does.
    def begin_state_over_quota(
        self: RunDir, step: int, arrays: dict[str, jax.Array], checksums: np.ndarray, may_appear: Callable[[], object]
    ) -> Callable[[], None]:
        may_appear()  # all before it is on disk
        quota = contextlib.ExitStack()
        quota.enter_context(_files_at_most(512))
        finish = begin_state(self, step, arrays, checksums, may_appear)

        def finish_then_lift() -> None:
            with quota:
                finish()

        return finish_then_lift

    options = ("train", config_file, "--run", run, "--devices", "1")
    with monkeypatch.context() as patched:
        patched.setattr(RunDir, "begin_state", begin_state_over_quota)
        status, _, err = command(*options)
    assert status == 2
    assert "cannot write the run directory: File too large" in only_line(err)
    assert len(recorded(run)["loss"]) == 8
    assert command("verify", run)[0] == 0
    assert command(*options)[0] == 0
    assert_same_run(run, unbroken)
    note("a file larger than the quota", said(err), "the state; its steps are done again")


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/run", "/dev/null/run", "/dev/full"])
def test_run_that_cannot_be_made(config_file: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a regular file")
    path = tmp_path / place  # an absolute place stands for itself
    status, _, err = command("train", config_file, "--run", path, "--devices", "1")
    assert status == 2
    assert str(path) in only_line(err)


def test_read_only_file_system(config_file: Path, small_disk: Path, tmp_path: Path, note: Note) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    run = small_disk / "run"
    train_here(tiny_config(), run, stop_at=4)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    before = folder_bytes(run)
    for path in (run, small_disk / "new"):
        status, _, err = command("train", config_file, "--run", path, "--devices", "1")
        assert status == 2
        assert f"{path}: cannot write the run directory: Read-only file system" in only_line(err)
    assert command("verify", run)[0] == 0
    for args in (("analyze", run), ("report", run, "--out", tmp_path / "report"), ("audit", run)):
        status, _, err = command(*args)
        assert status == 2
        assert f"{run}/" in only_line(err)
        assert "Read-only file system" in err
    assert folder_bytes(run) == before
    note("read-only RUN", said(err))


# --- what was written is damaged ---


def _largest_file(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def _truncate(folder: Path) -> None:
    file = _largest_file(folder)
    os.truncate(file, file.stat().st_size // 2)


def _flip(folder: Path) -> None:
    """One bit of what is read: Orbax's files hold a few bytes that are not, and never at the same place."""
    file, good = _largest_file(folder), load_arrays(epath.Path(folder))
    data = file.read_bytes()
    for place in range(len(data) // 2, len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            found = load_arrays(epath.Path(folder))
        except UserError:
            return
        if any(not np.array_equal(found[name], good[name]) for name in good):
            return
    raise AssertionError(f"no byte of {file} is read")


def _swap(folder: Path) -> None:
    other = folder.parent / "1"
    folder.rename(folder.parent / "0.swap")
    other.rename(folder)
    (folder.parent / "0.swap").rename(other)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (_truncate, "damaged, cannot be loaded"),
    "bit-flipped": (_flip, ""),  # what it breaks, data or their index, is for Orbax to say
    "swapped with another": (_swap, "it holds the parameters of step 1"),
    "missing": (shutil.rmtree, "missing; the manifest or schedule says"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_snapshot(damage: str, config_file: Path, unbroken: Path, tmp_path: Path, note: Note) -> None:
    """Named by `verify` and refused by `analyze`; training goes on without it, and what it held can be put back."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    train_here(tiny_config(), run, stop_at=5)
    for step in ("0", "1"):
        shutil.copytree(run / "snapshots" / step, kept / step)
    break_, line = DAMAGES[damage]
    break_(run / "snapshots" / "0")
    status, out, err = command("verify", run)
    assert status != 0
    assert f"{run / 'snapshots' / '0'}: " in out + err
    assert line in out + err
    status, _, err = command("analyze", run)
    assert status == 2
    assert line in only_line(err)
    assert command("train", config_file, "--run", run, "--devices", "1")[0] == 0
    for step in ("0", "1"):
        shutil.rmtree(run / "snapshots" / step, ignore_errors=True)
        shutil.copytree(kept / step, run / "snapshots" / step)
    assert_same_run(run, unbroken)
    note(f"snapshot {damage}", said(err), "that snapshot")


@pytest.mark.parametrize("damage", ["truncated", "bit-flipped"])
def test_damaged_state(damage: str, config_file: Path, unbroken: Path, tmp_path: Path, note: Note) -> None:
    """Without it the run goes on from the state before."""
    run = tmp_path / "run"
    train_here(tiny_config(snapshots={"state_every_s": 1e-9}), run, stop_at=5)
    assert RunDir.open(str(run)).last_state_step() == 5
    DAMAGES[damage][0](run / "state" / "5")
    status, _, err = command("train", config_file, "--run", run, "--devices", "1")
    assert status == 2
    assert str(run / "state" / "5") in only_line(err)
    assert "; without this folder the run resumes from the state before it" in err
    shutil.rmtree(run / "state" / "5")
    assert command("train", config_file, "--run", run, "--devices", "1")[0] == 0
    assert_same_run(run, unbroken)
    note(f"state {damage}", said(err), "the steps since the state before are done again")


def test_damaged_token_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Note) -> None:
    """Seen by its checksum and made anew: the run goes on with the same rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "stories.txt").write_text("".join(f"the {i} green frog saw {i * i} clouds. " for i in range(400)))
    config = tmp_path / "text.toml"
    text = TINY.replace("[data]\n", f'[data]\nsource = "text:{tmp_path / "stories.txt"}"\ntokenizer = "bpe"\n')
    config.write_text(
        text.replace("vocab_size = 29", "vocab_size = 300").replace("[data.repeats]\nphrase_len = 5\n", "")
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert command("train", config, "--run", whole, "--devices", "1")[0] == 0
    (tokens,) = (tmp_path / "cache").rglob("tokens.bin")
    good = tokens.read_bytes()
    tokens.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    status, _, err = finish(start_cli("train", config, "--run", run, "--devices", "1"))
    assert status == 0
    assert "damaged" in err
    (tokens,) = (tmp_path / "cache").rglob("tokens.bin")
    assert tokens.read_bytes() == good
    assert_same_run(run, whole)
    note("token cache bit-flipped", said(err))
