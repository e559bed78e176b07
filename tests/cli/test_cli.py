"""The command line as a user meets it."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from icl_jax import __version__, process
from icl_jax.cli import main
from icl_jax.config.builtin import suite_file
from icl_jax.rundir import RunDir
from icl_jax.suites.suite import load_suite
from icl_jax.train import session
from tests.train.runs import CLI, TINY, TellingTracker, command, finish, start_cli, tiny_config, train_here

_VERBS = [
    ("train",),
    ("branch",),
    ("verify",),
    ("audit",),
    ("import",),
    ("probe",),
    ("export",),
    ("data",),
    ("data", "prepare"),
    ("data", "show"),
    ("reproduce",),
]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.mark.parametrize("verb", _VERBS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_an_example(verb: tuple[str, ...], flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, out, err = command(*verb, flag)
    assert (status, err) == (0, "")
    assert f"icl-jax {' '.join(verb)}" in out
    assert "Example: icl-jax " in out


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("help",)], ids=str)
def test_help_names_the_verbs(args: tuple[str, ...]) -> None:
    status, out, err = command(*args)
    assert (status, err) == (0, "")
    for verb in ("train", "verify", "probe", "export", "data", "reproduce"):
        assert f"\n  {verb} " in out
    assert "--debug" in out


def test_help_with_a_config_shows_its_values(config_file: Path) -> None:
    status, out, _ = command("train", config_file, "--help")
    assert status == 0
    assert "--model.n-heads" in out
    assert "(default: 3)" in out


def test_a_folder_does_not_hide_the_built_in_config_or_suite_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("smoke", "quick"):
        (tmp_path / name).mkdir()
    for args in (("train", "smoke", "--help"), ("launch", "smoke", "--on", "slurm", "--dry-run")):
        status, out, err = command(*args)
        assert (status, err) == (0, ""), args
        assert "64" in out
    # Into a folder of its own name, with Ctrl-C; once more: it resumes; and a third time.
    small = ("--train.n-steps", "2", "--optimizer.warmup-steps", "0", "--devices", "1")
    again = ("train", "smoke", "--run", "smoke", *small)
    with monkeypatch.context() as patch:
        tracker = TellingTracker(lambda step: None if step else signal.raise_signal(signal.SIGINT))
        patch.setattr(session, "make_tracker", lambda *_args: tracker)
        status, out, err = command(*again)
    assert (status, err) == (130, "")
    assert f"SIGINT: state saved at step 1; resume with: icl-jax {' '.join(again)}" in out
    for said in ("smoke: resumes at step 1", "smoke: already complete at step 2"):
        status, out, err = command(*again)
        assert (status, err) == (0, ""), err
        assert said in out
    assert load_suite(suite_file("quick")).members[0].name == "repeats-0l"


def test_version() -> None:
    assert command("--version") == (0, f"icl-jax {__version__}\n", "")


@pytest.mark.parametrize("why", ["Unable to allocate 3.00 TiB for an array", ""])
def test_memory_that_runs_out_is_one_line(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(*_args: object) -> int:
        raise MemoryError(why)

    monkeypatch.setitem(main._VERBS, "verify", verify)
    assert command("verify", "run") == (2, "", f"icl-jax: out of memory{': ' if why else ''}{why}\n")


def test_jax_is_not_asked_for_a_million_devices(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(process, "configure_jax", asked.append)
    many = ("--devices", str(2**20), "--train.batch-size", str(2**20))
    status = main.run(["train", str(config_file), "--run", str(tmp_path / "run"), *many])
    assert (status, asked) == (2, [512])
    assert capsys.readouterr().err.startswith("icl-jax: --devices = 1048576: must be at most 8")
    assert not (tmp_path / "run").exists()


def test_debug_shows_where_an_error_came_from() -> None:
    status, _, err = command("--debug", "verify", "nope")
    assert status == 2
    assert err.startswith("Traceback (most recent call last)")
    assert "RunDir.open" in err
    assert err.splitlines()[-1] == "icl-jax: nope: no such run directory"
    assert command("verify", "nope", "--debug")[2].startswith("Traceback")


def test_built_in_config_with_overrides_and_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the default run directory is runs/NAME, a relative path
    overrides = (
        "--train.n-steps",
        "4",
        "--optimizer.warmup-steps",
        "2",
        "--model.n-layers",
        "1",
        "--model.d-model",
        "8",
    )
    status, out, err = command("train", "smoke", "--devices", "1", *overrides)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith("runs/smoke: complete, 4 steps, ")
    run = RunDir.open("runs/smoke")
    assert (run.config.train.n_steps, run.config.model.n_layers, run.config.model.d_model) == (4, 1, 8)
    assert run.config.model.n_ctx == 64  # the file's
    status, out, err = command("verify", "runs/smoke")
    assert (status, err) == (0, "")
    assert out.startswith("runs/smoke: good: 4 of 4 steps x 64 positions recorded")
    assert len(out.splitlines()) == 1


def test_verify_ends_quietly_when_nobody_reads(config_file: Path, tmp_path: Path) -> None:
    train_here(tiny_config(), tmp_path / "run")
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = start_cli("verify", tmp_path / "run", stdout=write_end)
    os.close(write_end)
    assert finish(child)[::2] == (0, "")


def test_help_ends_quietly_when_nobody_reads() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    child = start_cli("train", "--help", stdout=write_end)
    os.close(write_end)
    assert finish(child)[::2] == (0, "")


def test_an_error_in_the_program_itself_shows_its_traceback() -> None:
    code = f"import icl_jax.cli.main as m; m._VERBS['verify'] = lambda args, console: 1 / 0; {CLI[2]}"
    done = subprocess.run([CLI[0], "-c", code, "verify"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_only_the_futures_of_failed_saves_are_silent() -> None:
    code = """
from icl_jax import process
class Raises:
    def __init__(self, text): self.text = text
    def __del__(self): raise RuntimeError(self.text)
process.quiet_libraries()
Raises("Event loop is closed")
Raises("something else")
"""
    done = subprocess.run([CLI[0], "-c", code], capture_output=True, text=True, check=True)
    assert "something else" in done.stderr
    assert "Event loop" not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", ["40", "200"])
def test_argument_errors_read_the_same_in_any_terminal(
    encoding: str, columns: str, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    monkeypatch.setenv("COLUMNS", columns)
    _, _, err = finish(start_cli("train", config_file, "--seed", "1"))
    meant = "--data.seed or --members.seeds or --train.seed"
    assert err == f"icl-jax: --seed: no such option; did you mean {meant}?; see icl-jax train --help\n"
