"""A series of ours in all but its history: trained, exported and imported as a stranger's, it is measured alike.

Then it is damaged as public series are, and the audit of the import names each fault.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import load_file, save_file

from icl_jax.analysis import analyze, run_measurements
from icl_jax.export.as_family import form_of
from icl_jax.model.params import init_params
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import quiet_orbax
from tests.train.runs import command, tiny_config, train_here

CONFIG = tiny_config(
    model={"d_model": 36},
    train={"n_steps": 80},
    optimizer={"lr": 0.03, "warmup_steps": 0},
    snapshots={"n_linear": 40, "n_log": 0},
)

# Of every kind: of rows, heads, weights, labels, curves, sets of heads; the others only cost time here.
TAKEN = (
    "icl", "phase_change", "bump", "loss_changes", "head_scores", "label_changes", "label_matching", "copying",
    "head_changes", "composition", "pca", "seen_bigrams",
)  # fmt: skip


def _imported(hub: Path, run: Path, text: Path) -> str:
    args = ("--text", text, "--tokens-per-step", str(CONFIG.tokens_per_step))
    status, out, err = command("import", hub, "--run", run, *args)
    assert (status, err) == (0, "")
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, trained, and `hub`, its export."""
    quiet_orbax()
    path = tmp_path_factory.mktemp("series")
    train_here(CONFIG, path / "run")
    args = ("export", path / "run", "--to", "transformers", "--all-steps", "--out", path / "hub")
    assert command(*args)[::2] == (0, "")
    return path


def test_the_analysis_is_the_same_and_the_audit_clean(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = _imported(folder / "hub", folder / "again", folder / "run")
    assert f"{folder / 'again'}: clean: 41 checkpoints, step 0 to 80" in out
    # A stranger's series has no record, so what is looked for changes in is the snapshots, at an unknown learning rate.
    monkeypatch.setattr(run_measurements, "recorded_of", lambda _run: None)
    runs = [RunDir.open(str(folder / name)) for name in ("run", "again")]
    ours, theirs = (analyze(run, only=TAKEN) for run in runs)
    assert json.loads(theirs.attrs["absent"]) == json.loads(ours.attrs["absent"])
    assert set(theirs.variables) == set(ours.variables)
    for name in ours.variables:
        xr.testing.assert_allclose(theirs[name], ours[name], atol=1e-5, rtol=1e-5)
    assert runs[0].manifest.read() == runs[1].manifest.read()  # hashes among them
    assert runs[1].imported is not None
    assert runs[1].imported["text"] == f"run:{runs[0].run_id}"


def _change(folder: Path, name: str, array: np.ndarray) -> None:
    tensors = load_file(folder / "model.safetensors")
    assert tensors[name].shape == array.shape
    save_file(tensors | {name: array}, folder / "model.safetensors", metadata={"format": "pt"})


def test_planted_corruptions_are_found(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    hub = Path(shutil.copytree(folder / "hub", tmp_path / "hub"))
    for step, of in ((16, 80), (18, 80), (38, 40)):  # final weights at early steps; two steps that are one
        shutil.copy(hub / f"step{of}" / "model.safetensors", hub / f"step{step}")
    q_proj, v_proj = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qv")
    _change(hub / "step28", q_proj, load_file(hub / "step76" / "model.safetensors")[q_proj])
    stray = np.random.default_rng(0).normal(0, 0.1, (36, 36)).astype(np.float32)
    _change(hub / "step60", v_proj, stray)
    other = {name: np.asarray(array) for name, array in init_params(CONFIG.model, 99).items()}
    save_file(form_of(CONFIG.model).tensors(other), hub / "step0" / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(hub / "step70")
    (hub / "step50" / "model.safetensors").write_bytes(b"")
    out = _imported(hub, tmp_path / "again", folder / "run")
    assert "step 50: left out" in out
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in out.splitlines() if "│" in line]
    found = sorted((row[0], row[1]) for row in rows if row[0])
    assert found == sorted(
        [("16, 18, 80", "equal weights"), ("38, 40", "equal weights"), ("28", "tensor out of line"),
         ("60", "tensor out of line"), ("0, 2", "start"), ("50", "missing"), ("70", "missing")]
    )  # fmt: skip
    assert command("audit", tmp_path / "again")[0] == 1


def test_a_run_whose_rows_do_not_go_with_the_model_is_refused(
    folder: Path, imported: Path, series: Path, tmp_path: Path
) -> None:
    """Rows of the same tokenizer are taken, others are not."""
    args = ("import", series, "--run", tmp_path / "again", "--text")
    assert command(*args, imported, "--no-audit")[0] == 0
    again, first = (RunDir.open(str(path)) for path in (tmp_path / "again", imported))
    assert again.load_held_out().sha256 == first.load_held_out().sha256
    assert again.config.data == first.config.data
    refused = {
        (series, folder / "run"): "has no tokenizer than",
        (series, imported, "--n-ctx", "16"): "--n-ctx = 16: must be 32, the tokens of the rows of --text",
        (folder / "hub", imported): "--n-ctx = 32: must be at most 17",
    }
    for (source, text, *more), said in refused.items():
        status, _, err = command("import", source, "--run", tmp_path / "no", "--text", text, *more)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
        assert not (tmp_path / "no").exists()
