"""What an imported run is good for: it is analyzed, reported, probed and verified as one that was trained here."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import icl_jax
from tests.train.runs import command


@pytest.fixture(scope="module")
def run(imported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, analyzed."""
    path = Path(shutil.copytree(imported, tmp_path_factory.mktemp("verbs") / "run"))
    status, _, err = command("analyze", path, "--only", "head_scores,icl,phase_change,pca,held_out_loss")
    assert (status, err) == (0, "")
    return path


def test_it_is_measured(run: Path) -> None:
    opened = icl_jax.open_run(str(run))
    assert opened.analysis["snapshot"].values.tolist() == [0, 2, 4]
    assert opened.analysis["tokens"].values.tolist() == [0, 2 * 2**21, 4 * 2**21]
    assert np.isfinite(opened.analysis["prefix_matching"].values).all()
    assert len(opened.heads()) == 6
    assert "imported from" in opened._repr_html_()


def test_it_is_reported(run: Path) -> None:
    status, _, err = command("report", run)
    assert (status, err) == (0, "")
    page = (run / "report" / "index.html").read_text()
    assert "imported from" in page
    csv = [path.read_text() for path in (run / "report").rglob("*.csv")]
    assert csv
    assert not any("run: training batches" in text for text in csv)  # there is no record of any


def test_it_is_probed(run: Path) -> None:
    status, out, err = command("probe", run, "the assert statement", "--step", "4")
    assert (status, err) == (0, "")
    assert "mean loss at step 4:" in out


def test_what_cannot_be_done_says_why(run: Path) -> None:
    status, _, err = command("export", run, "--to", "transformer-lens")
    assert (status, err.count("\n")) == (2, 1) or status == 0
    with pytest.raises(icl_jax.config.UserError, match="has no record: its snapshots were imported"):
        icl_jax.open_run(str(run)).record  # noqa: B018


def test_a_snapshot_that_was_changed_is_found(run: Path) -> None:
    environment = run / "environment.json"
    text = environment.read_text()
    environment.write_text(text.replace('"2": {', '"3": {'))
    try:
        status, out, _ = command("verify", run)
    finally:
        environment.write_text(text)
    assert status == 1
    assert "does not say what files the snapshot of step 2 is from" in out
