"""`icl-jax export`: the files, read without this package's writer; tests/parity loads them in TransformerLens."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.rundir import RunDir
from tests.analysis.small_runs import make_run, random_rows, random_run
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
        (("run", "--to", "onnx"), "--to = 'onnx': must be one of 'transformer-lens', 'transformers'"),
        (("run", "--to", "transformer-lens", "--all-steps"), "--all-steps: only with --to transformers"),
        (("run", "--to", "transformers"), "--out is missing: the folder to write, new or empty"),
        (("run", "--to", "transformers", "--out", "."), "--out = '.': holds 'empty': must be a new or an empty folder"),
        (("run", "--to", "transformers", "--out", "run/config.toml"), "is a file: must be a new or an empty folder"),
        (("run", "--to", "transformers", "--out", "run/config.toml/x"), "cannot write the export"),
        (("run", "--to", "transformers", "--out", "gs://b/x"), "--out = 'gs://b/x': must be a local folder"),
        (("run", "--to", "transformers", "--out", "new", "--step", "3"), "no snapshot of step 3; the nearest are"),
        (("run", "--to", "transformers", "--out", "new", "--step", "4", "--all-steps"), "--step = 4: not with --all"),
        (("empty", "--to", "transformers", "--out", "new"), "empty: has no snapshots yet"),
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
    assert not (runs / "new").exists()
    assert not list(runs.glob("**/*.partial"))


def test_a_folder_for_the_hub(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    out.mkdir()  # empty
    status, said, err = command("export", runs / "run", "--to", "transformers", "--all-steps", "--out", out)
    assert (status, err) == (0, "")
    assert said.splitlines()[0] == f"{out}: 2 snapshots, step0 to step4, IclJaxForCausalLM"
    assert said.splitlines()[1] == "no tokenizer: the corpus is one of token ids"
    assert f"from_pretrained('{out}/step4', trust_remote_code=True)" in said
    assert {path.name for path in out.iterdir()} == {
        "step0", "step4", "README.md", "modeling_icl_jax.py", "transformer_lens_adapter.py",
    }  # fmt: skip
    for step, seed in ((0, 0), (4, 1)):
        assert {path.name for path in (out / f"step{step}").iterdir()} == {
            "config.json", "model.safetensors", "modeling_icl_jax.py",
        }  # fmt: skip
        arrays, metadata = read_safetensors(out / f"step{step}" / "model.safetensors")
        params = random_params(MODEL, seed)
        np.testing.assert_array_equal(arrays["model.embed_tokens.weight"], params["W_E"])
        wide = np.swapaxes(params["W_Q"][1], 1, 2).reshape(6, 6)  # heads and their entries, by d_model
        np.testing.assert_array_equal(arrays["model.layers.1.self_attn.q_proj.weight"], wide)
        assert metadata["step"] == str(step)
    config = json.loads((out / "step4" / "config.json").read_text())
    assert (config["n_ctx"], config["d_mlp"], config["bos_token_id"]) == (7, 5, 0)
    card = (out / "README.md").read_text()
    run = RunDir.open(str(runs / "run"))
    assert all(f"| {entry.step} | {entry.tokens} | {entry.sha256} |" in card for entry in run.manifest.read())
    assert "n_layers = 2" in card
    assert "phase_change.png" not in card  # nothing was analyzed
    status, _, err = command("export", runs / "run", "--to", "transformers", "--out", out)
    assert status == 2
    assert "holds 'README.md': must be a new or an empty folder" in err


def test_a_standard_class_needs_no_code_of_ours_and_the_tokenizer_goes_along(
    tmp_path: Path, tokenizer_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(
        n_layers=1, n_ctx=33, vocab_size=263, d_mlp=8, gated_mlp=True, activation="silu", positions="rotary"
    )  # fmt: skip
    run = make_run(tmp_path / "run", model, {5: random_params(model)}, random_rows(model, 6), tokenizer_json)
    assert command("analyze", run.path, "--only", "held_out_loss,icl")[0] == 0
    out = tmp_path / "hub"
    monkeypatch.chdir(tmp_path)
    status, said, err = command("export", run.path, "--to", "transformers", "--out", "hub")
    assert (status, err) == (0, "")
    assert said.splitlines()[0] == f"{out}: step5, LlamaForCausalLM"
    assert f"from_pretrained({str(out / 'step5')!r})" in said  # from any folder
    assert "trust_remote_code" not in said
    assert {path.name for path in (out / "step5").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (out / "step5" / "tokenizer.json").read_text() == tokenizer_json
    settings = json.loads((out / "step5" / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["model_max_length"]) == ("<|bos|>", 33)
    card = (out / "README.md").read_text()
    assert "`LlamaForCausalLM` computes it exactly" in card
    assert "## Numbers" in card
