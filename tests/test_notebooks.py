"""The notebooks of notebooks/ run, cell by cell, and what stands last in a cell shows itself."""

import ast
import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.analysis.small_runs import hand_built_run
from tests.test_readme import SHORT
from tests.train.runs import command


def _run_notebook(path: Path, more_options: dict[str, list[str]]) -> list[str]:
    """Run the cells in one namespace; `!icl-jax VERB` with the verb's further options. What the cells show."""
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        assert cell["outputs"] == [], "commit notebooks without outputs"
        if code.startswith("!icl-jax "):
            verb, *args = shlex.split(code.format_map(names))[1:]
            status, _, err = command(verb, *args, *more_options.get(verb, []))
            assert (status, err) == (0, ""), code
            continue
        *lines, last = ast.parse(code).body
        shows = isinstance(last, ast.Expr)
        body = ast.Module(lines if shows else [*lines, last], [])
        exec(compile(body, path.name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), path.name, "eval"), names)
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    return shown


def test_watch_a_head_form(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, losses, heads, curves, probe = _run_notebook(
        checkout / "notebooks" / "watch_a_head_form.ipynb",
        {"train": [*SHORT, "--train.n-steps", "12", "--snapshots.n-linear", "4"]},
    )
    assert "<svg" in run
    assert "12 steps" in run
    assert "<th>phase change</th><td>not tested: fewer than eight points" in run
    assert "data:image/png" in losses
    assert "prefix_matching" in heads
    assert "data:image/png" in curves
    assert probe.count("<tr>") == 1 + 9


def test_measure_your_own_run(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hand_built_run(tmp_path / "runs" / "two-layers", n_ctx=17, vocab_size=11)
    monkeypatch.chdir(tmp_path)
    shown = _run_notebook(checkout / "notebooks" / "measure_your_own_run.ipynb", {})
    run, config, heads, ablated, shape, chart = shown
    assert "2 layers of 1 heads" in run
    assert "[model]" in config
    assert "copying_eigenvalue" in heads
    assert "-1.0" in ablated
    assert shape == "(11, 2, 1)"
    assert "data:image/png" in chart
