"""What the environment asks for and this machine has not is said of the environment, not of the user's files."""

from pathlib import Path

import jax
import pytest

from icl_jax import process
from icl_jax.config import UserError
from tests.analysis.small_runs import hand_built_run
from tests.train.runs import TINY, command, finish, only_line, start_cli


def test_a_platform_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")  # of the process that is started
    status, out, err = finish(start_cli("analyze", tmp_path / "run"))
    assert (status, out) == (2, "")
    said = "JAX_PLATFORMS = 'cuda': is not a platform of this machine and installation; there is cpu; the environment"
    assert said in only_line(err)
    status, out, err = finish(start_cli("verify", tmp_path / "run"))  # of files alone: without JAX
    assert (status, err) == (0, "")
    assert "good" in out


def test_every_verb_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    hand_built_run(run, n_ctx=17, vocab_size=11)
    (tmp_path / "tiny.toml").write_text(TINY)

    def none() -> list[jax.Device]:
        raise UserError("no such platform")

    monkeypatch.setattr(process, "devices", none)
    for args in (
        ("analyze", run, "--show"), ("report", run), ("probe", run, "1 2"),
        ("export", run, "--to", "transformer-lens"), ("train", tmp_path / "tiny.toml", "--run", tmp_path / "new"),
    ):  # fmt: skip
        status, _, err = command(*args)
        assert (status, only_line(err)) == (2, "icl-jax: no such platform"), args
    assert not (tmp_path / "new").exists()
