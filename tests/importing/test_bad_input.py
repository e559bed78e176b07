"""What cannot be imported: exit status 2, one line that says what and why, and no run directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.importing.map_weights import read_config
from tests.importing import written
from tests.train.runs import command

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    # name: (what config.json says, what the line must hold)
    "encoder": (
        {"model_type": "bert"},
        "model_type = 'bert': an encoder, which predicts no next token; must",
    ),
    "encoder and decoder": ({"is_encoder_decoder": True}, "is_encoder_decoder = True: an encoder and a decoder"),
    "unknown family": (
        {"model_type": "rwkv"},
        "model_type = 'rwkv': not a family that is known; must be one of",
    ),
    "experts": ({"num_local_experts": 8}, "num_local_experts = 8: a mixture of experts is not represented here"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantised weights (of these, GGUF alone is read)"),
    "unknown option": ({"key_offset": 1}, "unknown option key_offset = '1': what it does to the model is not known"),
    "rotary of another kind": (
        {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        "rope_type = 'longrope'",
    ),
    "rotary option": (
        {"rope_scaling": {"type": "linear", "factor": 2.0, "phase": 1}},
        "rope_scaling.phase = 1: not represented here",
    ),
    "rotary without its factor": ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor = None: must be a number"),
    "half of a head turns": (
        {"partial_rotary_factor": 0.5},
        "partial_rotary_factor = 0.5: not represented here, for the family turns whole heads: must be 1",
    ),
    "activation": ({"hidden_act": "xielu"}, "hidden_act = 'xielu': not represented here, must be one of gelu_new"),
    "no size": ({"hidden_size": None}, "hidden_size = None: must be a number"),
    "heads": ({"num_attention_heads": 5, "head_dim": 6}, "model.n_kv_heads = 2: must divide model.n_heads = 5"),
    "layers": ({"num_hidden_layers": 1}, "layers.1.input_layernorm.weight: is no tensor of the family llama with 1"),
    "more layers": ({"num_hidden_layers": 3}, "layers.2.input_layernorm.weight: missing, though other layers have it"),
    "vocabulary": ({"vocab_size": 300}, "W_E has the shape [263, 12], its config says [300, 12]"),
    "bias that is not there": ({"attention_bias": True}, "layers.{}.self_attn.q_proj.bias: missing (b_Q)"),
}


def _refused(*args: object, run: Path) -> str:
    status, out, err = command("import", *args, "--run", run)
    assert status == 2, out
    assert err.startswith("icl-jax: ")
    assert err.count("\n") == 1
    assert not run.exists()
    return err


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> Callable[..., Path]:
    tensors = written.random_tensors("llama", seed=1)

    def make(**options: Any) -> Path:
        return written.write(tmp_path_factory.mktemp("llama") / "m", "llama", tensors, tokenizer_json, **options)

    return make


@pytest.mark.parametrize(("options", "said"), OPTIONS.values(), ids=OPTIONS)
def test_a_config_that_is_not_represented(
    options: dict[str, Any], said: str, llama: Callable[..., Path], tmp_path: Path
) -> None:
    assert said in _refused(llama(**options), run=tmp_path / "run")


def test_the_one_opt_model_that_is_not_represented_is_named() -> None:
    config = {"model_type": "opt", "do_layer_norm_before": False, "hidden_size": 1024, "word_embed_proj_dim": 512}
    with pytest.raises(
        UserError, match="do_layer_norm_before = False: norms of the sums themselves, as OPT-350m alone"
    ):
        read_config(config, "config.json")


def test_options_that_change_nothing_may_be_ignored(llama: Callable[..., Path], text: Path, tmp_path: Path) -> None:
    source = llama(key_offset=1, key_gate=False)
    args = ("import", source, "--run", tmp_path / "run", "--text", text, "--ignore", "key_offset")
    assert command(*args)[0] == 0


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "m: has no weights: must hold one of model.saf"),
    "config that is no JSON": (lambda m: (m / "config.json").write_text("{"), "config.json: not JSON"),
    "config that is a list": (lambda m: (m / "config.json").write_text("[]"), "config.json: must be a JSON object"),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "has no tokenizer.json: --tokenizer PATH.json names"),
    "no tokenizer at all": (lambda m: (m / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
    "index that names files elsewhere": (
        lambda m: (m / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}})),
        "model.safetensors.index.json: damaged: must name the file of each tensor",
    ),
}


@pytest.mark.parametrize(("damage", "said"), FILES.values(), ids=FILES)
def test_files_that_cannot_be_used(
    damage: Callable[[Path], object], said: str, llama: Callable[..., Path], text: Path, tmp_path: Path
) -> None:
    source = llama()
    damage(source)
    assert said in _refused(source, "--text", text, run=tmp_path / "run")


def test_tensors_that_cannot_be_used(llama: Callable[..., Path], tokenizer_json: str, tmp_path: Path) -> None:
    whole = written.random_tensors("llama", seed=1)
    cases = {
        "norm.weight: missing (ln_final_w)": {name: a for name, a in whole.items() if name != "model.norm.weight"},
        "layers.0.mlp.experts.0.weight: is no tensor": whole | {"model.layers.0.mlp.experts.0.weight": np.ones(3)},
        "quantised weights are not read": whole | {"model.embed_tokens.weight": np.ones((263, 12), np.int8)},
    }
    for i, (said, tensors) in enumerate(cases.items()):
        source = written.write(tmp_path / f"m{i}", "llama", tensors, tokenizer_json)
        assert said in _refused(source, run=tmp_path / "run")


ARGUMENTS: dict[str, tuple[tuple[str, ...], str]] = {
    "no such path": (("nosuch",), "nosuch: no such file or folder, and no glob of checkpoints"),
    "folder of nothing": (("empty",), "empty: must hold a config.json with weights, a .gguf file, or a folder"),
    "a file of something else": (("short.txt",), "short.txt: is neither a folder nor a file of weights"),
    "a device": (("/dev/null",), "/dev/null: is neither a folder nor a file of weights"),
    "folders without steps": (("unnamed",), "unnamed: no folder is named by its step, such as step1000; there are a"),
    "two of one step": (("twice",), "are both of step 3"),
    "steps": (("series", "--steps", "a-b"), "--steps = 'a-b': must be steps and ranges of steps such as 0,1000,2000"),
    "steps that are not there": (("series", "--steps", "7"), "--steps = '7': no such step; there are 3 from 0 to 4"),
    "context": (("series", "--n-ctx", "99"), "--n-ctx = 99: must be at most 37, the context of"),
    "negative context": (("series", "--n-ctx", "-1"), "--n-ctx = -1: must be 0 or more"),
    "short text": (("series", "--text", "short.txt"), "short.txt': holds 6 tokens: must hold 38 tokens or more, a row"),
    "text that is not there": (("series", "--text", "no.txt"), "'text:no.txt': no file matches"),
    "tokenizer that is not there": (("series", "--tokenizer", "no.json"), "no.json: cannot be read: No such file"),
    "hub name": (("hf:a/b/c",), "hf:a/b/c: must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION"),
}


@pytest.mark.parametrize(("args", "said"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments(
    args: tuple[str, ...], said: str, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("series").symlink_to(series)
    for folder in ("empty", "unnamed/a", "unnamed/b", "twice/step3", "twice/checkpoint-3"):
        Path(folder).mkdir(parents=True)
        if folder != "empty":
            Path(folder, "config.json").write_text("{}")
    Path("short.txt").write_text("ab cd")
    assert said in _refused(*args, run=tmp_path / "run")


def test_a_run_directory_of_something_else(
    imported: Path, series: Path, copied: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    cases = {
        ("import", copied, "--run", imported): "was imported from",
        ("import", series, "--run", imported, "--n-ctx", "16"): "--n-ctx = 16:",
        ("import", series, "--run", imported, "--text", "manual"): "--text = 'manual':",
        ("import", series, "--run", tmp_path / "run"): "holds 'thesis.tex' and is not a run directory",
        ("train", imported / "config.toml", "--run", imported): "was imported and has no training state",
    }
    for args, said in cases.items():
        status, _, err = command(*args)
        assert (status, err.count("\n")) == (2, 1), err
        assert said in err
