"""`icl-jax export`: the files, read without this package's writer; tests/parity loads them in TransformerLens."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.rundir import RunDir
from tests.analysis.small_runs import random_run
from tests.model.random_params import random_params
from tests.train.runs import command

MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=7, vocab_size=11, d_mlp=5, positions="standard")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    random_run(folder / "run", MODEL, [0, 4])
    random_run(folder / "smeared", ModelConfig(n_layers=1, n_ctx=7, vocab_size=11, smeared_keys=True), [0])
    random_run(folder / "empty", MODEL, [0])
    (folder / "empty" / "manifest.jsonl").unlink()
    return folder


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The format as it is described: header length, JSON header, buffers."""
    raw = path.read_bytes()
    (n_header,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + n_header])
    metadata = header.pop("__metadata__")
    arrays = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32"
        start, end = entry["data_offsets"]
        buffer = raw[8 + n_header + start : 8 + n_header + end]
        arrays[name] = np.frombuffer(buffer, "<f4").reshape(entry["shape"])
    return arrays, metadata


def test_the_last_snapshot_beside_the_run(runs: Path) -> None:
    verified = command("verify", runs / "run")
    status, out, err = command("export", runs / "run", "--to", "transformer-lens")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"{runs}/run/export/4.safetensors and 4.json, for TransformerLens 3:"
    arrays, metadata = read_safetensors(runs / "run" / "export" / "4.safetensors")
    params = random_params(MODEL, seed=1)  # of the second snapshot
    np.testing.assert_array_equal(arrays["embed.W_E"], params["W_E"])
    np.testing.assert_array_equal(arrays["blocks.1.attn.W_K"], params["W_K"][1])
    np.testing.assert_array_equal(arrays["blocks.1.mlp.W_out"], params["W_out"][1])
    run = RunDir.open(str(runs / "run"))
    assert metadata == {"format": "pt", "run_id": run.run_id, "step": "4", "sha256": run.manifest.read()[-1].sha256}
    config = json.loads((runs / "run" / "export" / "4.json").read_text())
    assert (config["d_vocab"], config["n_ctx"], config["act_fn"]) == (11, 7, "gelu_new")
    assert command("verify", runs / "run") == verified
    assert sorted(path.name for path in (runs / "run" / "export").iterdir()) == ["4.json", "4.safetensors"]


def test_a_step_and_a_file_that_are_asked_for(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "weights.safetensors"
    monkeypatch.chdir(tmp_path)
    for step, seed in (("4", 1), ("0", 0)):  # the second replaces the first
        to = "new/weights.safetensors"
        status, said, _ = command("export", runs / "run", "--to", "transformer-lens", "--step", step, "--out", to)
        assert status == 0
        # The printed code finds them from any folder.
        assert f"load_file({str(out)!r})" in said
        assert f"pathlib.Path({str(out.with_suffix('.json'))!r})" in said
        arrays, _ = read_safetensors(out)
        np.testing.assert_array_equal(arrays["unembed.W_U"], random_params(MODEL, seed)["W_U"])
    assert sorted(path.name for path in out.parent.iterdir()) == ["weights.json", "weights.safetensors"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("run",), "--to is missing"),
        (("run", "--to", "onnx"), "--to = 'onnx': must be one of 'transformer-lens'"),
        (("run", "--to", "transformer-lens", "--step", "3"), "no snapshot of step 3; the nearest are"),
        (("run", "--to", "transformer-lens", "--out", "w.pt"), "--out = 'w.pt': must end in .safetensors"),
        (("run", "--to", "transformer-lens", "--out", "run/config.toml/w.safetensors"), "cannot write the export"),
        (("smeared", "--to", "transformer-lens"), "model.smeared_keys = true: TransformerLens has no smeared keys"),
        (("empty", "--to", "transformer-lens"), "empty: has no snapshots yet"),
        (("nope", "--to", "transformer-lens"), "nope: no such run directory"),
    ],
    ids=str,
)
def test_what_cannot_be_exported(
    args: tuple[str, ...], expected: str, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    status, out, err = command("export", *args)
    assert (status, out) == (2, "")
    assert err.startswith("icl-jax: ")
    assert err.count("\n") == 1
    assert expected in err
