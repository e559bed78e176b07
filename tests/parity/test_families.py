"""Every family against transformers: tiny models whose weights, biases and norms are all random, saved and imported."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.families.table import TABLE
from icl_jax.importing.map_weights import map_weights
from icl_jax.maths.activations import as_jax
from icl_jax.maths.head_scores import prefix_matching, previous_token
from icl_jax.model.forward import run_with_cache

pytestmark = [pytest.mark.slow, pytest.mark.ci]
torch = pytest.importorskip("torch", reason="needs the extra `parity`: make test-parity")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`: make test-parity")

V, T = 97, 40
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": V}
_LIKE = _WIDE | {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
_GROUPED = _LIKE | {"num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": V}
_WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT),
    "crfm": ("gpt2", _GPT | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_neox": ("gpt_neox", _LIKE | {"rotary_pct": 0.25}),
    "gpt_neox in sequence": ("gpt_neox", _LIKE | {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "llama": ("llama", _GROUPED | {"tie_word_embeddings": True}),
    "llama with biases": ("llama", _GROUPED | {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama 3": (
        "llama",
        _LIKE
        | _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16),
    ),
    "linear": ("llama", _LIKE | _rope("linear", factor=4.0)),
    "yarn": ("llama", _LIKE | _rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "olmo": ("olmo", _LIKE),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", _GROUPED | _WINDOWED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2 with windows": (
        "qwen2",
        _GROUPED | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
    ),
    "qwen3": ("qwen3", _GROUPED | {"head_dim": 16}),
    "mistral": ("mistral", _GROUPED | {"sliding_window": 8}),
    "gptj": ("gptj", _GPT | {"rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": V, "max_position_embeddings": 64,
         "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "opt": ("opt", _WIDE | {"word_embed_proj_dim": 32, "ffn_dim": 48, "max_position_embeddings": 64}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": V}),
    "bloom of 6 heads": ("bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 6, "vocab_size": V}),
    "gemma": ("gemma", _LIKE | {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("gemma2", _GROUPED | _WINDOWED | {"head_dim": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3_text", _GROUPED | _WINDOWED | {"head_dim": 16, "query_pre_attn_scalar": 24}),
    "phi": ("phi", _LIKE),
    "smollm3": ("smollm3", _GROUPED | {"no_rope_layers": [1, 0]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_logits_and_patterns(case: str, tmp_path: Path) -> None:
    kind, fields = CASES[case]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    tokens = np.random.default_rng(0).integers(1, V, (2, T))
    with torch.no_grad():
        for name, values in model.named_parameters():
            is_norm = values.ndim == 1 and name.endswith("weight") and "gemma" not in kind
            values.copy_((0.2 if values.ndim > 1 else 0.3) * torch.randn_like(values) + float(is_norm))
        theirs = model(torch.from_numpy(tokens), output_attentions=True)
    model.save_pretrained(tmp_path)
    ours, params = map_weights(open_checkpoint(tmp_path))
    logits, seen = run_with_cache(as_jax(params), jnp.asarray(tokens, jnp.int32), ours, ("pattern",))
    np.testing.assert_allclose(logits, theirs.logits.numpy(), atol=1e-4, rtol=0)
    for layer, pattern in enumerate(theirs.attentions):
        np.testing.assert_allclose(seen["pattern", layer], pattern.numpy(), atol=1e-5, rtol=0)

    # The scores of heads on repeated tokens, from our patterns and from theirs.
    repeats = np.concatenate([tokens[:, :1], *[tokens[:, 1:14]] * 3], axis=1)
    with torch.no_grad():
        theirs = model(torch.from_numpy(repeats), output_attentions=True)
    repeated = jnp.asarray(repeats, jnp.int32)
    _, seen = run_with_cache(as_jax(params), repeated, ours, ("pattern",))
    for layer, pattern in enumerate(theirs.attentions):
        for score in (lambda p: prefix_matching(p, repeated), previous_token):
            expected = score(jnp.asarray(pattern.numpy()))
            np.testing.assert_allclose(score(seen["pattern", layer]), expected, atol=1e-5, rtol=0)


_PICO = {
    "self_attn.": "attention.", "mlp.gate_proj": "swiglu.w_0", "mlp.up_proj": "swiglu.w_1",
    "mlp.down_proj": "swiglu.w_2", "input_layernorm": "attention_norm", "post_attention_layernorm": "swiglu_norm",
    "model.norm": "output_norm", "model.embed_tokens": "embedding_proj", "lm_head": "de_embedding_proj",
    "model.layers": "layers",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_pico_is_a_llama_whose_rotation_turns_neighbours(tmp_path: Path) -> None:
    """By its code: so a Llama's rows of Q and K, interleaved, under its names give the Llama's logits."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **_GROUPED | {"rms_norm_eps": 1e-6})
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    tokens = np.random.default_rng(0).integers(1, V, (2, T))
    tensors = {}
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(0.2 * torch.randn_like(values) + float(values.ndim == 1))
            array, n_heads = values.numpy().copy(), 4 if "q_proj" in name else 2
            if "q_proj" in name or "k_proj" in name:
                array = array.reshape(n_heads, 2, -1, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
            for old, new in _PICO.items():
                name = name.replace(old, new)
            tensors[f"pico_decoder.{name}"] = np.ascontiguousarray(array)
        theirs = model(torch.from_numpy(tokens)).logits.numpy()
    save_file(tensors, tmp_path / "model.safetensors")
    fields = {
        "model_type": "pico_decoder", "d_model": 32, "n_layers": 2, "attention_n_heads": 4, "attention_n_kv_heads": 2,
        "activation_hidden_dim": 48, "vocab_size": V, "max_seq_len": 64, "norm_eps": 1e-6,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(fields))
    ours, params = map_weights(open_checkpoint(tmp_path))
    logits, _ = run_with_cache(as_jax(params), jnp.asarray(tokens, jnp.int32), ours, ())
    np.testing.assert_allclose(logits, theirs, atol=1e-4, rtol=0)


def test_every_family_of_transformers_is_tried() -> None:
    families = {name for family in TABLE for name in family.model_types}
    assert families - {kind for kind, _ in CASES.values()} == {
        "pico_decoder",  # above
        "hooked_transformer",  # of TransformerLens
        "icl_jax",  # ours, in test_exported.py
    }
