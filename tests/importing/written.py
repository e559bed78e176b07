"""Tiny checkpoints in the layout of their family, by NumPy alone, and what the models make of tokens, in float64.

Nothing of `icl_jax` computes here: each forward pass reads the family's own tensors, as its paper or its code has it.
"""

import json
from collections.abc import Callable
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

VOCAB, D, H, E, M, T = 263, 12, 3, 4, 20, 32
Arrays = dict[str, np.ndarray]
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2", "n_embd": D, "n_layer": 2, "n_head": H, "n_inner": M, "n_positions": T + 5,
        "vocab_size": VOCAB, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-3, "attn_pdrop": 0.1,
        "scale_attn_by_inverse_layer_idx": True, "bos_token_id": 0, "torch_dtype": "float32",
    },
    "gpt_neox": {
        "model_type": "gpt_neox", "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": H,
        "intermediate_size": M, "max_position_embeddings": T + 5, "vocab_size": VOCAB, "hidden_act": "gelu",
        "layer_norm_eps": 1e-3, "rotary_pct": 0.5, "rotary_emb_base": 100, "use_parallel_residual": True,
        "tie_word_embeddings": False, "bos_token_id": 0,
    },
    "llama": {
        "model_type": "llama", "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": M, "max_position_embeddings": T + 5,
        "vocab_size": VOCAB, "hidden_act": "silu", "rms_norm_eps": 1e-3, "rope_theta": 100.0,
        "tie_word_embeddings": True, "bos_token_id": 0,
    },
}  # fmt: skip


def random_tensors(kind: str, seed: int) -> Arrays:
    """Every tensor of a checkpoint, under the names of its files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(2):
        if kind == "gpt2":
            h = f"h.{i}."
            shapes |= {
                f"{h}attn.c_attn.weight": (D, 3 * D), f"{h}attn.c_attn.bias": (3 * D,),
                f"{h}attn.c_proj.weight": (D, D), f"{h}attn.c_proj.bias": (D,),
                f"{h}mlp.c_fc.weight": (D, M), f"{h}mlp.c_fc.bias": (M,),
                f"{h}mlp.c_proj.weight": (M, D), f"{h}mlp.c_proj.bias": (D,),
                **{f"{h}{norm}.{part}": (D,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")},
            }  # fmt: skip
        elif kind == "gpt_neox":
            h = f"gpt_neox.layers.{i}."
            shapes |= {
                f"{h}attention.query_key_value.weight": (3 * D, D), f"{h}attention.query_key_value.bias": (3 * D,),
                f"{h}attention.dense.weight": (D, D), f"{h}attention.dense.bias": (D,),
                f"{h}mlp.dense_h_to_4h.weight": (M, D), f"{h}mlp.dense_h_to_4h.bias": (M,),
                f"{h}mlp.dense_4h_to_h.weight": (D, M), f"{h}mlp.dense_4h_to_h.bias": (D,),
                **{f"{h}{norm}_layernorm.{part}": (D,) for norm in ("input", "post_attention")
                   for part in ("weight", "bias")},
            }  # fmt: skip
        else:
            h = f"model.layers.{i}."
            shapes |= {
                f"{h}self_attn.q_proj.weight": (24, D), f"{h}self_attn.k_proj.weight": (12, D),
                f"{h}self_attn.v_proj.weight": (12, D), f"{h}self_attn.o_proj.weight": (D, 24),
                f"{h}mlp.gate_proj.weight": (M, D), f"{h}mlp.up_proj.weight": (M, D),
                f"{h}mlp.down_proj.weight": (D, M),
                f"{h}input_layernorm.weight": (D,), f"{h}post_attention_layernorm.weight": (D,),
            }  # fmt: skip
    ends: dict[str, dict[str, tuple[int, ...]]] = {
        "gpt2": {"wte.weight": (VOCAB, D), "wpe.weight": (T + 5, D), "ln_f.weight": (D,), "ln_f.bias": (D,)},
        "gpt_neox": {
            "gpt_neox.embed_in.weight": (VOCAB, D), "embed_out.weight": (VOCAB, D),
            "gpt_neox.final_layer_norm.weight": (D,), "gpt_neox.final_layer_norm.bias": (D,),
        },
        "llama": {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)},
    }  # fmt: skip
    draw = np.random.default_rng(seed).normal
    found = {name: draw(0, 0.4, shape).astype(np.float32) for name, shape in (shapes | ends[kind]).items()}
    return {name: 1 + a if a.ndim == 1 and name.endswith("weight") else a for name, a in found.items()}


def write(folder: Path, kind: str, tensors: Arrays, tokenizer_json: str = "", **options: Any) -> Path:
    """A folder as `transformers` saves it; GPT-2's with the masks that hub files have."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[kind] | options))
    if tokenizer_json:
        (folder / "tokenizer.json").write_text(tokenizer_json)
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, T, T), np.float32)) for i in range(2)} if kind == "gpt2" else {}
    save_file(tensors | masks, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _norm(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, eps: float = 1e-3) -> np.ndarray:
    if b is None:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w + b


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """[heads, T, E] each; the heads' mixed values side by side, [T, heads E]."""
    scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) * scale
    scores = np.where(np.tril(np.ones(scores.shape[1:])) > 0, scores, -np.inf)
    pattern = np.exp(scores - scores.max(-1, keepdims=True))
    z = pattern / pattern.sum(-1, keepdims=True) @ v
    return z.swapaxes(0, 1).reshape(len(z[0]), -1)


def _turn(x: np.ndarray, n: int, base: float) -> np.ndarray:
    """Entries i and i + n / 2 of the first n, by angle position / base ** (2 i / n)."""
    out = x.copy()
    for position in range(x.shape[1]):
        for i in range(n // 2):
            angle = position / base ** (2 * i / n)
            a, b = x[:, position, i], x[:, position, i + n // 2]
            out[:, position, i] = a * np.cos(angle) - b * np.sin(angle)
            out[:, position, i + n // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def _heads(x: np.ndarray, n: int) -> np.ndarray:
    return x.reshape(len(x), n, -1).swapaxes(0, 1)


def _gpt2(t: Arrays, ids: np.ndarray) -> np.ndarray:
    x = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for i in range(2):
        h = f"h.{i}."
        a = _norm(x, t[f"{h}ln_1.weight"], t[f"{h}ln_1.bias"])
        q, k, v = np.split(a @ t[f"{h}attn.c_attn.weight"] + t[f"{h}attn.c_attn.bias"], 3, axis=1)
        z = _attend(_heads(q, H), _heads(k, H), _heads(v, H), 1 / (i + 1))
        x = x + z @ t[f"{h}attn.c_proj.weight"] + t[f"{h}attn.c_proj.bias"]
        a = _norm(x, t[f"{h}ln_2.weight"], t[f"{h}ln_2.bias"])
        m = a @ t[f"{h}mlp.c_fc.weight"] + t[f"{h}mlp.c_fc.bias"]
        m = 0.5 * m * (1 + np.tanh(np.sqrt(2 / np.pi) * (m + 0.044715 * m**3)))
        x = x + m @ t[f"{h}mlp.c_proj.weight"] + t[f"{h}mlp.c_proj.bias"]
    return _norm(x, t["ln_f.weight"], t["ln_f.bias"]) @ t["wte.weight"].T


def _gpt_neox(t: Arrays, ids: np.ndarray) -> np.ndarray:
    x = t["gpt_neox.embed_in.weight"][ids]
    for i in range(2):
        h = f"gpt_neox.layers.{i}."
        a = _norm(x, t[f"{h}input_layernorm.weight"], t[f"{h}input_layernorm.bias"])
        qkv = a @ t[f"{h}attention.query_key_value.weight"].T + t[f"{h}attention.query_key_value.bias"]
        q, k, v = qkv.reshape(len(ids), H, 3, E).transpose(2, 1, 0, 3)
        z = _attend(_turn(q, 2, 100), _turn(k, 2, 100), v)
        attention = z @ t[f"{h}attention.dense.weight"].T + t[f"{h}attention.dense.bias"]
        a = _norm(x, t[f"{h}post_attention_layernorm.weight"], t[f"{h}post_attention_layernorm.bias"])
        m = a @ t[f"{h}mlp.dense_h_to_4h.weight"].T + t[f"{h}mlp.dense_h_to_4h.bias"]
        m = m * 0.5 * (1 + np.vectorize(erf)(m / np.sqrt(2)))
        x = x + attention + m @ t[f"{h}mlp.dense_4h_to_h.weight"].T + t[f"{h}mlp.dense_4h_to_h.bias"]
    final = _norm(x, t["gpt_neox.final_layer_norm.weight"], t["gpt_neox.final_layer_norm.bias"])
    return final @ t["embed_out.weight"].T


def _llama(t: Arrays, ids: np.ndarray) -> np.ndarray:
    x = t["model.embed_tokens.weight"][ids]
    for i in range(2):
        h = f"model.layers.{i}."
        a = _norm(x, t[f"{h}input_layernorm.weight"], None)
        q, k, v = (_heads(a @ t[f"{h}self_attn.{name}_proj.weight"].T, n) for name, n in (("q", 4), ("k", 2), ("v", 2)))
        k, v = np.repeat(_turn(k, 6, 100), 2, axis=0), np.repeat(v, 2, axis=0)
        x = x + _attend(_turn(q, 6, 100), k, v) @ t[f"{h}self_attn.o_proj.weight"].T
        a = _norm(x, t[f"{h}post_attention_layernorm.weight"], None)
        gate, up = (a @ t[f"{h}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ t[f"{h}mlp.down_proj.weight"].T
    return _norm(x, t["model.norm.weight"], None) @ t["model.embed_tokens.weight"].T


LOGITS: dict[str, Callable[[Arrays, np.ndarray], np.ndarray]] = {"gpt2": _gpt2, "gpt_neox": _gpt_neox, "llama": _llama}


def logits(kind: str, tensors: Arrays, ids: np.ndarray) -> np.ndarray:
    """[T, vocabulary] of one row of ids."""
    return LOGITS[kind]({name: array.astype(np.float64) for name, array in tensors.items()}, ids)
