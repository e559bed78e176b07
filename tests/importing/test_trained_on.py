"""`icl-jax branch` of an imported run: its snapshot is step 0, its tokenizer encodes what is trained on."""

import json
from pathlib import Path

import numpy as np

from icl_jax.rundir import RunDir
from icl_jax.train.branch import BRANCH
from tests.train.runs import command, only_line


def test_an_imported_snapshot_is_trained_on(imported: Path, text: Path, tokenizer_json: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(text.read_text()[::-1])  # other text
    args = (
        "--train.n-steps", "6", "--train.batch-size", "4", "--optimizer.warmup-steps", "2", "--snapshots.n-linear", "2",
        "--snapshots.n-log", "0", "--data.source", f"text:{tmp_path / 'text.txt'}", "--devices", "1",
        "--probes.n-probes", "2",
    )  # fmt: skip
    status, out, err = command("branch", imported, "--at", "4", "--run", tmp_path / "run", *args)
    assert (status, err) == (0, "")
    assert f"{tmp_path / 'run'}: step 4 of {imported}; fresh: optimiser state, count of steps" in out
    run, parent = RunDir.open(str(tmp_path / "run")), RunDir.open(str(imported))
    assert run.read_tokenizer() == tokenizer_json
    assert run.config.model == parent.config.model
    first, theirs = run.load_params(0), parent.load_params(4)
    for name, array in theirs.items():
        np.testing.assert_array_equal(first[name], array)
    assert any(not np.array_equal(run.load_params(6)[name], array) for name, array in theirs.items())
    assert parent.imported is not None
    origin = run.environment[BRANCH]["imported"]
    assert (origin["revision"], origin["source"]) == ("step4", parent.imported["source"])
    assert set(origin["files"]) == {"config.json", "model.safetensors"}
    record = run.load_record()
    assert record.sizes["step"] == 6
    assert np.isfinite(record["loss"].values).all()
    assert command("verify", tmp_path / "run")[0] == 0


def test_an_imported_run_itself_is_not_trained_in(imported: Path, tmp_path: Path) -> None:
    status, _, err = command("train", imported / "config.toml", "--run", imported)
    assert status == 2
    assert "was imported and has no training state: icl-jax branch trains on from a snapshot" in only_line(err)
    status, _, err = command("branch", imported, "--at", "3", "--run", tmp_path / "run")
    assert status == 2
    assert "no snapshot of step 3; the nearest are 2, 4, 0" in only_line(err)
    assert not json.loads((imported / "environment.json").read_text())["starts"]
