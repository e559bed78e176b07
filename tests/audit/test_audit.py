"""`icl-jax audit` of a run, of folders and of a hub: the table, the exit status, the figure."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from icl_jax.audit.trajectory import layers_apart
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import save_arrays
from icl_jax.rundir.manifest import Manifest, SnapshotEntry, params_sha256
from tests.audit.conftest import CONFIG, Series
from tests.importing.hub import Hub, serving
from tests.train.runs import command


def _written(folder: Path, clean: Series, every: int = 4) -> Path:
    """The series as someone's checkpoints, in two shards each."""
    for step in sorted(clean)[::every]:
        one = folder / f"step{step}"
        one.mkdir(parents=True)
        (one / "config.json").write_text('{"model_type": "unheard-of"}')
        names = sorted(clean[step])
        for i, part in enumerate((names[::2], names[1::2]), start=1):
            tensors = {name: np.ascontiguousarray(clean[step][name]) for name in part}
            save_file(tensors, one / f"model-{i:05}-of-00002.safetensors")
    return folder


@pytest.fixture
def series(clean: Series, tmp_path: Path) -> Path:
    return _written(tmp_path / "series", clean)


def test_a_run_that_was_trained_here_is_clean(trained: Path, tmp_path: Path) -> None:
    figure = tmp_path / "audit.png"
    status, out, err = command("audit", trained, "--figure", figure)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1].startswith(f"{trained}: clean: ")
    assert "note: losses were not looked at: icl-jax analyze" in out
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_run_with_a_swapped_tensor_and_damage(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = Path(shutil.copytree(trained, tmp_path / "run"))
    run = RunDir.open(str(path))
    entries = run.manifest.read()
    bad, cut = entries[20].step, entries[25].step
    params = run.load_params(bad)
    params["W_Q"][1] = run.load_params(entries[-1].step)["W_Q"][1]
    save_arrays(epath.Path(path) / "snapshots" / str(bad), params)
    entries[20] = SnapshotEntry(bad, entries[20].tokens, params_sha256(params), entries[20].n_bytes)
    Manifest(run.manifest.path).write(entries)
    shutil.rmtree(path / "snapshots" / str(cut))
    shutil.copytree(path / "snapshots" / "0", path / "snapshots" / "999")
    status, out, _ = command("audit", path)
    assert status == 1
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines() if "│" in line]
    assert [row[:2] for row in rows if row[0]] == [
        [str(bad), "tensor out of line"], [str(cut), "damaged"], ["999", "stray"],
    ]  # fmt: skip
    assert f"W_Q.1 equals that of step {entries[-1].step}" in out
    assert (path / "audit.png").exists()
    assert out.splitlines()[-1].startswith(f"{path}: 3 findings: ")


def test_folders_of_any_model(series: Path, clean: Series, tmp_path: Path) -> None:
    assert command("audit", series)[0] == 0
    steps = sorted(clean)[::4]
    folder = series / f"step{steps[6]}"
    shutil.copy(series / f"step{steps[-1]}" / "model-00001-of-00002.safetensors", folder)
    shutil.rmtree(series / f"step{steps[3]}")
    shutil.copytree(series / f"step{steps[4]}", series / f"step{steps[3]}")
    (series / f"step{steps[8]}" / "config.json").unlink()
    (series / f"step{steps[9]}" / "model-00002-of-00002.safetensors").unlink()
    (series / f"step{steps[9]}" / "pytorch_model.bin").touch()
    status, out, _ = command("audit", series)
    assert status == 1
    for said in ("equal weights", "tensor out of line", "has no config.json", "stray", "damaged"):
        assert said in out


def test_the_hub_says_what_is_equal_without_a_download(
    series: Path, clean: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = sorted(clean)[::4]
    with serving(series, monkeypatch, tmp_path) as hub:
        source = f"hf:{hub.repo}"
        status, out, err = command("audit", source)
        assert (status, err) == (0, "")
        assert "note: files alone: icl-jax import looks at the tensors too" in out
        for step in steps[2:5]:
            shutil.rmtree(series / f"step{step}")
            shutil.copytree(series / f"step{steps[-1]}", series / f"step{step}")
        status, out, _ = command("audit", source)
        assert status == 1
        assert "4 checkpoints hold the same weights" in " ".join(out.split())
        assert hub.fetched == []


def test_what_cannot_be_audited_is_one_line(trained: Path, series: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    cases = {
        (tmp_path / "one",): "has one checkpoint: an audit compares those of several steps",
        (tmp_path / "none",): "no such file or folder",
        (trained, "--steps", "3"): "--steps, --stage: are of checkpoints that are no run directory yet",
        (series, "--steps", "7777"): "--steps = '7777': no such step",
        (trained, "--figure", "a.txt"): "--figure = 'a.txt': must end in .png, .pdf or .svg",
    }
    for args, said in cases.items():
        status, _, err = command("audit", *args)
        assert (status, err.count("\n")) == (2, 1), err
        assert said in err


def test_parameters_are_named_by_layer(trained: Path) -> None:
    names = set(layers_apart(RunDir.open(str(trained)).load_params(0), CONFIG.model))
    assert {"W_E", "W_Q.0", "W_Q.1", "ln_final_w"} <= names
    assert Hub.repo
