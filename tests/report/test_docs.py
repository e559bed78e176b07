import re
from pathlib import Path

import pytest

from icl_jax.analysis.run_measurements import analyze
from tests.analysis.small_runs import hand_built_run


def test_the_figure_of_the_page_on_reports_is_drawn(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = hand_built_run(tmp_path / "runs" / "repeats-2l", n_ctx=17, vocab_size=11)
    found = analyze(run, only=["phase_change"])
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (checkout / "docs" / "report.md").read_text(), re.MULTILINE | re.DOTALL
    )
    names: dict[str, object] = {}
    exec(compile(code, "docs/report.md", "exec"), names)
    assert [path.name for path in names["written"]] == [f"first_and_last.{kind}" for kind in ("png", "pdf", "csv")]
    last_row = (tmp_path / "figures" / "first_and_last.csv").read_text(encoding="utf-8").splitlines()[-1]
    loss = float(found["loss_by_position"][-1, -1])
    assert last_row == f"repeats-2l,last token,{100 * 136.0},{loss}"
