"""Stopping and going on: the printed command, Ctrl-C, and output that cannot be written."""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from icl_jax import process
from icl_jax.cli import main
from icl_jax.rundir import RunDir
from icl_jax.train import session
from icl_jax.train.stop import StopSignal
from tests.train.runs import TINY, TellingTracker, command


def test_the_printed_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in the names, and with the overrides."""
    folder = tmp_path / "a folder's $HOME * ?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("my config.toml").write_text(TINY)
    args = ["train", "my config.toml", "--run=my 'run' \"of\" $(today); #1", "--optimizer.lr=2e-3", "--devices", "1"]

    def interrupt(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(session, "make_tracker", lambda *_args: TellingTracker(interrupt))
        status, out, err = command(*args)
    assert (status, err) == (130, "")
    said, _, printed = out.splitlines()[-1].partition("; resume with: ")
    assert said == "SIGINT: state saved at step 4"
    words = shlex.split(printed)
    assert words == ["icl-jax", *args]
    status, out, err = command(*words[1:])
    assert (status, err) == (0, "")
    assert "resumes at step 4" in out
    assert len(RunDir.open("my 'run' \"of\" $(today); #1").manifest.read()) == 9


def test_ctrl_c_before_the_first_step_interrupts_and_after_it_is_heeded_at_the_end_of_one() -> None:
    with StopSignal() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # a preempted machine is gone in half a minute, and nothing is lost
        assert stop.signum == signal.SIGTERM
    with StopSignal() as stop:
        stop.begin()
        assert process.interrupts.is_patient
        signal.raise_signal(signal.SIGINT)
        assert stop.signum == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not process.interrupts.is_patient


@pytest.mark.parametrize(
    ("is_patient", "signals", "ends"),
    [
        (False, [signal.SIGINT], True),
        (False, [signal.SIGTERM, signal.SIGWINCH], False),
        (True, [signal.SIGINT], False),
        (True, [signal.SIGINT, signal.SIGINT], True),
    ],
)
def test_what_python_does_not_get_to_is_ended_all_the_same(
    is_patient: bool, signals: list[int], ends: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(signals))
    os.close(writer)

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(process.Interrupts, "_GRACE_S", 0.0)
    monkeypatch.setattr(os, "_exit", leave)
    interrupts = process.Interrupts()
    interrupts.is_patient = is_patient
    with pytest.raises(SystemExit, match="130") if ends else contextlib.nullcontext():
        interrupts._watch(reader)
    os.close(reader)
    assert capfd.readouterr().err == ("icl-jax: interrupted\n" if ends else "")


def test_a_program_that_is_deep_in_c_ends_on_ctrl_c() -> None:
    # A handler that is never heard: as Python's own is where no instruction of Python's follows.
    code = """
import signal
from icl_jax import process
signal.signal(signal.SIGINT, lambda *_: None)
process.Interrupts._GRACE_S = 0.1
process.interrupts.watch()
import hashlib
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGINT)
        assert child.communicate()[1] == b"icl-jax: interrupted\n"
        assert child.returncode == 130


def test_a_full_disk_behind_the_output_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "configure_jax", lambda _n_cpu_devices: None)
    (tmp_path / "tiny.toml").write_text(TINY)
    run = tmp_path / "run"
    for args, status in (
        (["train", str(tmp_path / "tiny.toml"), "--run", str(run), "--devices", "1"], 0),
        (["verify", str(run)], 1),
        (["--version"], 1),
    ):
        with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
            assert main.run(args) == status
        said = "icl-jax: cannot write to standard output: No space left on device: going on without\n"
        assert capfd.readouterr().err == said
    assert len(RunDir.open(str(run)).manifest.read()) == 9


def test_what_the_terminal_lacks_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("日本.toml").write_text(TINY.replace("n_steps = 8", "n_steps = 0"))
    terminals = [io.TextIOWrapper(io.BytesIO(), "latin-1") for _ in range(2)]
    with contextlib.redirect_stdout(terminals[0]), contextlib.redirect_stderr(terminals[1]):
        assert main.run(["data", "show", "日本.toml"]) == 2
        Path("日本.toml").write_text(TINY)
        Path("text.txt").write_text("日本語 " * 500)
        text = ("--data.source", "text:text.txt", "--model.vocab-size", "300", "--rows", "1")
        assert main.run(["data", "show", "日本.toml", *text]) == 0
    said, error = (terminal.buffer.getvalue().decode() for terminal in terminals)  # type: ignore[attr-defined]
    assert "\\u65e5\\u672c\\u8a9e \\u65e5" in said
    assert error.startswith("icl-jax: \\u65e5\\u672c.toml: train.n_steps = 0: must be")
