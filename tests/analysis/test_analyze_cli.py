import re
import shutil
from pathlib import Path

import pytest

import icl_jax
from icl_jax import process
from icl_jax.cli.main import run as run_cli
from icl_jax.config import UserError
from icl_jax.measures.table import TABLE
from tests.analysis.small_runs import hand_built_run


@pytest.fixture(autouse=True)
def _devices_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    # The number of devices is fixed once JAX has begun.
    monkeypatch.setattr(process, "configure_jax", lambda _n: None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("cli") / "run"
    hand_built_run(path, n_ctx=17, vocab_size=11)
    return str(path)


def test_list_names_every_measurement_and_variable(capsys: pytest.CaptureFixture) -> None:
    assert run_cli(["analyze", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for entry in TABLE:
        assert any(line.startswith(f"{entry.name}  (") for line in lines)
        for name in entry.variables:
            assert any(line.split()[:1] == [name] for line in lines), name
    (line,) = [line for line in lines if line.strip().startswith("prefix_matching ")]
    assert "prefix_matching (snapshot, layer, head)" in line
    assert " attention " in line


def test_show_prints_the_phase_change(path: str, capsys: pytest.CaptureFixture) -> None:
    assert run_cli(["analyze", path, "--only", "ablation_effects,head_scores,composition", "--show"]) == 0
    out = capsys.readouterr().out
    for words in (
        "phase change                 0.00", "90 % interval", "icl_windowed (nats)          before (step ",
        "steepest fall, change or not 0.0",
        "induction heads              1.0 1.00", "previous-token heads         0.0 1.00",
        "K-composition                0.0 -> 1.0 +", "full                       1.0 1.00 (+2.40), 0.0 1.00 (+2.40)",
        "pattern-preserving         1.0 1.00 (+2.40), 0.0 -0.00",
        "absent: smear                model.smeared_keys = false",
    ):  # fmt: skip
        assert words in out, words
    # The second time there is nothing to do but print.
    assert run_cli(["analyze", path, "--show"]) == 0
    again = capsys.readouterr().out
    assert "measurements taken" not in again
    assert again.splitlines()[-5:] == out.splitlines()[-5:]


def test_progress_is_told_in_lines_without_a_terminal(path: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("analysis*"))
    assert run_cli(["analyze", str(copy), "--only", "icl", "--snapshots", "0,50,100"]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 measurements taken, the latest held_out_loss" in out
    assert "variables of 3 snapshots; 3 measurements taken in" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "RUN is missing"),
        (
            ["RUN", "--snapshots", "many"],
            "--snapshots = 'many': must be a number such as 20, or steps such as 0,100,200",
        ),
        (["RUN", "--snapshots", "0,55"], "no snapshot of step 55; the nearest are"),
        (["RUN", "--only", "heads"], "--only = 'heads': no such measurement; there are held_out_loss"),
        (["RUN", "--rows", "-1"], "--rows = -1: must be 0 or more"),
        (["no/such/run"], "no such run directory"),
    ],
)
def test_mistakes_are_one_line(path: str, args: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run_cli(["analyze", *[path if arg == "RUN" else arg for arg in args]]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_run_that_was_not_analyzed_says_what_to_do(path: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("analysis*"))
    run = icl_jax.open_run(str(copy))
    with pytest.raises(UserError, match=f"no analysis yet: icl-jax analyze {copy} makes it"):
        _ = run.analysis
    with pytest.raises(UserError, match="no snapshot of step 3"):
        run.params(3)
    with pytest.raises(UserError, match="no such run directory"):
        icl_jax.open_run(str(tmp_path / "nothing"))
    (copy / "analysis.zarr").mkdir()
    with pytest.raises(UserError, match="cannot read the analysis"):
        _ = run.analysis


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        _ = icl_jax.no_such
    with pytest.raises(AttributeError, match="no_such"):
        _ = icl_jax.analysis.no_such


def test_a_run_that_has_gone_on_since_is_said_and_what_is_new_is_measured(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy, later = tmp_path / "copy", range(50, 101, 10)
    shutil.copytree(path, copy, ignore=shutil.ignore_patterns("analysis*"))
    manifest = (copy / "manifest.jsonl").read_text()
    for step in later:
        (copy / "snapshots" / str(step)).rename(tmp_path / str(step))
    (copy / "manifest.jsonl").write_text("".join(manifest.splitlines(keepends=True)[:5]))
    assert run_cli(["analyze", str(copy), "--only", "icl", "--rows", "5"]) == 0
    for step in later:
        (tmp_path / str(step)).rename(copy / "snapshots" / str(step))
    (copy / "manifest.jsonl").write_text(manifest)
    change = f"{copy}: the run has changed since it was analyzed: 5 snapshots up to step 40 then, 11 up to step 100 now"
    with pytest.warns(UserWarning, match=re.escape(change)):
        assert icl_jax.open_run(str(copy)).analysis.sizes["snapshot"] == 5
    capsys.readouterr()
    assert run_cli(["analyze", str(copy), "--show"]) == 0
    out = capsys.readouterr().out
    assert f"{change}: measuring what is new" in out
    assert re.findall("variables of 11 snapshots; . measurements taken", out) == [
        "variables of 11 snapshots; 6 measurements taken"
    ]
    assert icl_jax.open_run(str(copy)).analysis.attrs["held_out_rows"] == 5
    assert run_cli(["analyze", str(copy), "--show"]) == 0
    assert "changed" not in capsys.readouterr().out
