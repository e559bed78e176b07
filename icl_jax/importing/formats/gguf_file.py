"""GGUF files, by the `gguf` library: quantised weights as float32, under the names that `transformers` has for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from icl_jax.config import UserError
from icl_jax.importing.formats.tensor import Tensor, Tensors
from icl_jax.rundir.files import reason

_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_ARCHITECTURES = ("llama", "qwen2")
# Of them alone llama.cpp stores rows of Q and K so that entries that turn together are neighbours.
_PAIRED = ("llama",)
# Splits before the byte-level alphabet, by tokenizer.ggml.pre.
_SPLITS_DIGITS = ("smollm", "smaug-bpe")


def load_gguf(path: Path) -> tuple[dict[str, Any], Tensors, str | None]:
    """What stands for config.json, the tensors, and the tokenizer as JSON of the `tokenizers` library.

    The tokenizer is None where it is of a kind that is not represented. Raises UserError where the library is not
    installed, for a damaged file, and for an architecture that is not represented.
    """
    try:
        import gguf
    except ImportError:
        raise UserError(f"{path}: GGUF needs the library gguf: pip install 'icl-jax[gguf]'") from None
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # a damaged file raises anything
        raise UserError(f"{path}: not a GGUF file, or damaged: {reason(error)}") from None
    said = {name: field.contents() for name, field in reader.fields.items()}
    kind = said.get("general.architecture")
    if kind not in _ARCHITECTURES:
        allowed = f"must be one of {', '.join(_ARCHITECTURES)}"
        raise UserError(f"{path}: general.architecture = {kind!r}: not represented here, {allowed}")
    tensors: Tensors = {}
    for part in reader.tensors:
        name = _name(part.name, path)
        n_heads = 0
        if kind in _PAIRED and ".attn_q." in part.name:
            n_heads = int(said[f"{kind}.attention.head_count"])
        elif kind in _PAIRED and ".attn_k." in part.name:
            n_heads = int(said.get(f"{kind}.attention.head_count_kv", said[f"{kind}.attention.head_count"]))
        if name is not None:
            shape = tuple(int(size) for size in reversed(part.shape))
            tensors[name] = Tensor(shape, np.dtype(np.float32), _reading(part, n_heads, gguf.dequantize))
    return _config(said, kind, "lm_head.weight" not in tensors, path), tensors, _tokenizer(said)


def _name(name: str, path: Path) -> str | None:
    """As `transformers` calls it; None for the frequencies of rotary embeddings, which the config says."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        if part in _NAMES:
            return f"model.layers.{layer}.{_NAMES[part]}.{suffix}"
    elif stem in _NAMES:
        return f"{_NAMES[stem]}.{suffix}"
    raise UserError(f"{path}: {name}: not a tensor that is known")


def _reading(part: Any, n_heads: int, dequantize: Any) -> Any:
    def read() -> np.ndarray:
        array = np.asarray(dequantize(part.data, part.tensor_type), np.float32)
        if not n_heads:
            return array
        # Neighbours, back to halves of each head.
        shape = array.shape
        pairs = array.reshape(n_heads, shape[0] // n_heads // 2, 2, *shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(shape))

    return read


def _config(said: dict[str, Any], kind: str, is_tied: bool, path: Path) -> dict[str, Any]:
    def number(name: str, default: Any = None) -> Any:
        value = said.get(f"{kind}.{name}", default)
        if value is None:
            raise UserError(f"{path}: {kind}.{name} is missing")
        return value

    scaling = said.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or any("rope_freqs" in name for name in said):
        raise UserError(f"{path}: {kind}.rope.scaling.type = {scaling!r}: not represented here in GGUF, must be none")
    if said.get(f"{kind}.expert_count"):
        raise UserError(f"{path}: {kind}.expert_count: a mixture of experts is not represented here")
    d_model, n_heads = int(number("embedding_length")), int(number("attention.head_count"))
    d_head = int(said.get(f"{kind}.attention.key_length", d_model // n_heads))
    if int(said.get(f"{kind}.rope.dimension_count", d_head)) != d_head:
        raise UserError(f"{path}: {kind}.rope.dimension_count: not represented here in GGUF, must be {d_head}")
    return {
        "model_type": kind,
        "hidden_size": d_model,
        "num_hidden_layers": int(number("block_count")),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(number("attention.head_count_kv", n_heads)),
        "head_dim": d_head,
        "intermediate_size": int(number("feed_forward_length")),
        "vocab_size": int(said.get(f"{kind}.vocab_size", len(said["tokenizer.ggml.tokens"]))),
        "max_position_embeddings": int(number("context_length")),
        "rms_norm_eps": float(number("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(number("rope.freq_base", 10_000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": is_tied,
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
    }


def _tokenizer(said: dict[str, Any]) -> str | None:
    """A byte-level BPE; transformers leaves the split of digits out of it, and so gives other tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind, pre = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in (*_SPLITS_DIGITS, "gpt-2"):
        return None
    tokens = said["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in said["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre in _SPLITS_DIGITS else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    control = 3
    types = said.get("tokenizer.ggml.token_type", [])
    special = [token for token, kind in zip(tokens, types, strict=False) if kind == control]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return json.dumps(json.loads(tokenizer.to_str()))
