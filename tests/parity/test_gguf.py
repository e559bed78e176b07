"""A GGUF as llama.cpp has it, rows of Q and K in pairs: the same parameters as from the safetensors it was made of."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from icl_jax.config import UserError
from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.held_out import find_tokenizer
from icl_jax.importing.map_weights import map_weights
from tests.importing import written

gguf = pytest.importorskip("gguf", reason="needs the extra `gguf`: make test-parity")
pytestmark = [pytest.mark.slow, pytest.mark.ci]
_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _write(path: Path, tensors: written.Arrays, pre: str = "smollm") -> Path:
    alphabet = [chr(i) for i in range(33, 127)]
    tokens = ["<s>", *alphabet, *(f"t{i}" for i in range(written.VOCAB - 97)), "12", "Ġ"]
    file = gguf.GGUFWriter(path, "llama")
    file.add_block_count(2)
    file.add_context_length(37)
    file.add_embedding_length(written.D)
    file.add_feed_forward_length(written.M)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_key_length(6)
    file.add_rope_dimension_count(6)
    file.add_rope_freq_base(100.0)
    file.add_layer_norm_rms_eps(1e-3)
    file.add_vocab_size(written.VOCAB)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(pre)
    file.add_token_list(tokens)
    file.add_token_types([3] + [1] * (len(tokens) - 1))
    file.add_token_merges(["1 2"])
    file.add_bos_token_id(0)
    for name, array in tensors.items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            layer, part = stem.removeprefix("model.layers.").split(".", 1)
            new = f"blk.{layer}.{_NAMES[part]}.weight"
        else:
            new = f"{_NAMES[stem]}.weight"
        for part, n_heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # llama.cpp's converter
                array = array.reshape(n_heads, 2, 3, written.D).swapaxes(1, 2).reshape(array.shape)
        file.add_tensor(new, np.ascontiguousarray(array))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def test_weights_and_tokenizer(tmp_path: Path) -> None:
    tensors = written.random_tensors("llama", seed=5)
    checkpoint = open_checkpoint(_write(tmp_path / "m.gguf", tensors))
    ours, params = map_weights(checkpoint)
    expected, whole = map_weights(open_checkpoint(written.write(tmp_path / "m", "llama", tensors)))
    assert abs(ours.norm_eps - expected.norm_eps) < 1e-9  # a float32 in GGUF
    assert params.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(params[name], whole[name], err_msg=name)
    assert checkpoint.tokenizer_json is not None
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
    assert tokenizer.encode("ab 12").tokens == ["a", "b", "Ġ", "1", "2"]  # digits stand alone, whatever is merged


def test_what_is_not_represented_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.gguf", written.random_tensors("llama", seed=5), pre="tekken")
    with pytest.raises(UserError, match=r"has no tokenizer\.json: --tokenizer PATH\.json names the model's own"):
        find_tokenizer(open_checkpoint(path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="not a GGUF file, or damaged"):
        open_checkpoint(tmp_path / "m.gguf")
