import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_jax import process
from icl_jax.cli.main import run as run_cli
from tests.analysis.small_runs import hand_built_run


def test_the_page_on_analysis_runs_as_it_stands(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its code, in order, in a folder where runs/repeats-2l is a small run; then its commands."""
    hand_built_run(tmp_path / "runs" / "repeats-2l", n_ctx=17, vocab_size=11)
    monkeypatch.chdir(tmp_path)
    page = (checkout / "docs" / "analysis.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), "docs/analysis.md", "exec"), names)
    assert names["losses"]["full"].shape == (2, 1, 8, 17)
    monkeypatch.setattr(process, "configure_jax", lambda _n: None)
    commands = re.findall(r"^icl-jax (.*?)(?: +#.*)?$", page, re.MULTILINE)
    in_words = [command for command in commands if command.startswith("behaviours ")]
    assert (len(commands), len(in_words)) == (8, 2)
    for command in commands:
        assert run_cli(shlex.split(command)) == (2 if command in in_words else 0)  # no such run here
    printed = capsys.readouterr().out
    assert "phase change                 0.0" in printed
    assert "before and after the phase change" in printed
    assert "load_state_dict" in printed
    assert names["look"].probs.shape == (6, 11)
    assert names["look"].attribution.heads.shape == (5, 2, 1)


def test_the_page_on_patching_runs_as_it_stands(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_built_run(tmp_path / "runs" / "repeats-2l", n_ctx=17, vocab_size=11)
    monkeypatch.chdir(tmp_path)
    page = (checkout / "docs" / "patching.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    exec(compile("\n".join(blocks), "docs/patching.md", "exec"), names)
    np.testing.assert_allclose(names["heads"], [[1], [1]], atol=1e-4)
    np.testing.assert_allclose(names["through"], [0, math.log(11), 0], atol=1e-3)
    np.testing.assert_allclose(names["cheap"], 0, atol=1e-2)
    assert names["stream"].sizes == {"layer": 2, "position": 8}
