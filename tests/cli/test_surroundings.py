"""A machine that is not as expected: no room, no locks, no folder to run in. One line, or the work is done."""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

import pytest

from icl_jax.analysis.run_measurements import analyze
from icl_jax.cli import main
from icl_jax.config import UserError
from icl_jax.rundir.lock import exclusive
from tests.analysis.small_runs import hand_built_run
from tests.train.runs import command, only_line


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.EIO, errno.ENOTDIR])
def test_what_the_system_refuses_is_one_line_whatever_the_verb(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(*_args: object) -> int:
        raise OSError(code, os.strerror(code), "disk/file")

    for name in main._VERBS:
        monkeypatch.setitem(main._VERBS, name, verb)
        status, _, err = command(name)
        assert (status, only_line(err)) == (2, f"icl-jax: disk/file: {os.strerror(code)}")


def test_a_bug_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def verb(*_args: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file", "ours")

    monkeypatch.setitem(main._VERBS, "verify", verb)
    with pytest.raises(FileNotFoundError):
        main.run(("verify", "r"))


def test_a_folder_that_was_removed_under_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for args in (("verify", "r"), ("analyze", "r"), ("train", "repeats-1l", "--run", "r")):
        status, _, err = command(*args)
        assert (status, only_line(err)) == (
            2,
            "icl-jax: the folder that this runs in has been removed: change to another",
        )


def test_help_without_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONOPTIMIZE=2 drops them."""
    monkeypatch.setattr(main._train, "__doc__", None)
    assert "None" not in command()[1]


def test_file_systems_without_locks_hold_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code in (errno.ENOLCK, errno.EOPNOTSUPP):

        def no_locks(_file: object, _how: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", no_locks)
            with exclusive(str(tmp_path / "run")):
                pass
    with (
        exclusive(str(tmp_path / "run")),
        pytest.raises(UserError, match="another process is writing"),
        exclusive(str(tmp_path / "run")),
    ):
        pass


def test_a_second_analysis_of_a_run_waits(tmp_path: Path) -> None:
    run = hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    first = contextlib.ExitStack()
    first.enter_context(exclusive(run.path / "analysis_parts"))
    n_waited = 0

    def waiting() -> None:
        nonlocal n_waited
        n_waited += 1
        assert not (run.path / "analysis.zarr").exists()
        first.close()

    for _ in range(2):
        assert "icl_score" in analyze(run, only=["icl"], waiting=waiting)
    assert n_waited == 1


@pytest.mark.parametrize("name", ["replace_bytes", "save_dataset"])
def test_a_disk_that_is_full_while_a_run_is_analyzed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a write raises has no path."""

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    module = "finished_work" if name == "replace_bytes" else "run_measurements"
    monkeypatch.setattr(f"icl_jax.analysis.{module}.{name}", full)
    status, _, err = command("analyze", run.path, "--only", "icl")
    assert status == 2
    assert only_line(err) == f"icl-jax: {run.path}: cannot write the run directory: No space left on device"
