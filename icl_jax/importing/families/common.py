"""What many families share: words of config.json, rotary embeddings, windows, the tensors of Llama."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from icl_jax.config import ModelConfig, UserError
from icl_jax.importing.families.family import Arrays, Fields, Layout, Options, Part
from icl_jax.importing.families.layouts import head_vectors, heads_in, heads_out, transposed

ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu",
    "gelu_python": "gelu", "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu2",
}  # fmt: skip
"""Of config.json, and what we call them."""
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
"""The other way, the first name of each."""
ATTENTION_BIASES = ("b_Q", "b_K", "b_V", "b_O")
ALL_BIASES = (*ATTENTION_BIASES, "b_in", "b_out", "b_U")
"""Of a model whose layers and LayerNorms all have biases: those of the norms are folded into the others."""

DECODER = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
    "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
"""Defaults that most families after Llama have."""


def sizes(options: Options) -> Fields:
    """Layers, widths, heads, vocabulary and context, as families after Llama name them."""
    n_heads = options.number("num_attention_heads")
    return {
        "n_layers": options.number("num_hidden_layers"),
        "d_model": options.number("hidden_size"),
        "n_heads": n_heads,
        "n_kv_heads": options.get("num_key_value_heads") or n_heads,
        "d_head": options.get("head_dim") or options.number("hidden_size") // n_heads,
        "d_mlp": options.number("intermediate_size"),
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("max_position_embeddings"),
        "tied_unembedding": bool(options.get("tie_word_embeddings")),
    }


def sizes_of(model: ModelConfig) -> dict[str, Any]:
    """The other way: what `sizes` reads."""
    return {
        "num_hidden_layers": model.n_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.n_heads,
        "num_key_value_heads": model.key_heads,
        "head_dim": model.head_width,
        "intermediate_size": model.d_mlp,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.n_ctx,
        "tie_word_embeddings": model.tied_unembedding,
    }


def decoder(options: Options) -> Fields:
    """A model after Llama: RMSNorm, gated MLP, rotary embeddings, grouped keys."""
    found = sizes(options)
    biases = ATTENTION_BIASES if options.get("attention_bias") else ()
    biases = (*biases, "b_in", "b_gate", "b_out") if options.get("mlp_bias") else biases
    return found | rotary(options, found["d_head"]) | {
        "norm": "rmsnorm",
        "norm_eps": options.number("rms_norm_eps"),
        "activation": options.choice("hidden_act", ACTIVATIONS),
        "gated_mlp": True,
        "biases": biases,
    }  # fmt: skip


def decoder_of(model: ModelConfig) -> dict[str, Any]:
    """The other way: what `decoder` reads, but for biases, which not every family has."""
    return sizes_of(model) | rotary_words(model) | {
        "rms_norm_eps": model.norm_eps,
        "hidden_act": ACTIVATION_NAMES.get(model.activation),
    }  # fmt: skip


def has_attention_biases(model: ModelConfig) -> bool:
    """What `attention_bias` says."""
    return bool(set(ATTENTION_BIASES) & set(model.biases))


def has_mlp_biases(model: ModelConfig) -> bool:
    """What `mlp_bias` says."""
    return any(name in model.biases for name in ("b_in", "b_gate", "b_out"))


def rotary_words(model: ModelConfig) -> dict[str, Any]:
    """The other way: what `rotary` reads, in the words of transformers 4, which 5 reads too."""
    words: dict[str, Any] = {"rope_theta": model.rotary_base}
    if model.rotary_dim:
        words["partial_rotary_factor"] = model.rotary_dim / model.head_width
    if model.rotary_scaling == "none":
        return words
    scaling: dict[str, Any] = {"rope_type": model.rotary_scaling, "factor": model.rotary_factor}
    if model.rotary_scaling != "linear":
        is_llama3 = model.rotary_scaling == "llama3"
        low, high = ("low_freq_factor", "high_freq_factor") if is_llama3 else ("beta_slow", "beta_fast")
        scaling |= {low: model.rotary_low_turns, high: model.rotary_high_turns}
        scaling["original_max_position_embeddings"] = model.rotary_original_ctx
    if model.rotary_scaling == "yarn":
        scaling["attention_factor"] = 1.0  # it is in W_Q
    return words | {"rope_scaling": scaling}


def rotary(options: Options, d_head: int) -> Fields:
    """The fields of rotary embeddings, as transformers 4 and 5 write them. Raises UserError for a kind of scaling."""
    given = (options.get("rope_scaling") or {}) | (options.get("rope_parameters") or {})
    options.ignore("original_max_position_embeddings")
    return rotary_of(given, options, d_head)


def rotary_of(given: Mapping[str, Any], options: Options, d_head: int) -> Fields:
    """The same, of what one kind of layers is given."""
    share = given.get("partial_rotary_factor") or options.get("partial_rotary_factor", "rotary_pct") or 1.0
    if share != 1 and not options.has_default("partial_rotary_factor", "rotary_pct"):
        what = "not represented here, for the family turns whole heads: must be 1"
        raise UserError(f"{options.where}: partial_rotary_factor = {share!r}: {what}")
    n_rotated = int(d_head * share)
    base = options.number("rope_theta", "rotary_emb_base")  # read even where it is given
    fields = {
        "positions": "rotary",
        "rotary_base": float(given.get("rope_theta") or base),
        "rotary_dim": 0 if n_rotated == d_head else n_rotated,
    }
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return fields
    if kind not in ("linear", "llama3", "yarn"):
        allowed = "not represented here, must be default, linear, llama3 or yarn"
        raise UserError(f"{options.where}: rope_type = {kind!r}: {allowed}")
    known = {
        "rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings",
        "low_freq_factor", "high_freq_factor", "beta_slow", "beta_fast", "attention_factor", "truncate",
    }  # fmt: skip
    for name, value in given.items():
        if name not in known or (name == "truncate" and value is not True):
            raise UserError(f"{options.where}: rope_scaling.{name} = {value!r}: not represented here")
    if not isinstance(given.get("factor"), int | float):
        raise UserError(f"{options.where}: rope_scaling.factor = {given.get('factor')!r}: must be a number")
    low, high = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ("beta_slow", "beta_fast")
    original = given.get("original_max_position_embeddings") or options.number("max_position_embeddings")
    return fields | {
        "rotary_scaling": kind,
        "rotary_factor": float(given["factor"]),
        "rotary_original_ctx": 0 if kind == "linear" else original,
        "rotary_low_turns": float(given.get(low) or 1.0),
        "rotary_high_turns": float(given.get(high) or (4.0 if kind == "llama3" else 32.0)),
    }


def yarn_amplitude(arrays: Arrays, model: ModelConfig, options: Options) -> None:
    """YaRN multiplies cosines and sines by a factor, and so the scores by its square."""
    given = (options.get("rope_scaling") or {}) | (options.get("rope_parameters") or {})
    if model.rotary_scaling != "yarn":
        return
    amplitude = given.get("attention_factor") or 0.1 * math.log(model.rotary_factor) + 1.0
    n = model.rotary_dim or model.head_width
    scale = np.where(np.arange(model.head_width) < n, amplitude**2, 1).astype(np.float32)
    for name in ("q_norm_w",) if model.qk_norm == "head" else ("W_Q", "b_Q"):
        if name in arrays:
            arrays[name] = arrays[name] * scale


def windows(options: Options, n_layers: int) -> Fields:
    """Layers that see a window alone, by `layer_types` of transformers 5 or what stood in their place."""
    window = options.get("sliding_window")
    types = options.get("layer_types")
    options.ignore("max_window_layers", "use_sliding_window")
    if window is None or (types is None and options.get("use_sliding_window") is False):
        return {}
    if types is None and options.get("use_sliding_window"):
        first = options.number("max_window_layers")
        types = ["full_attention" if layer < first else "sliding_attention" for layer in range(n_layers)]
    return {"window": int(window)} | window_layers(options, types, n_layers, "sliding_attention", "full_attention")


def windows_of(model: ModelConfig) -> dict[str, Any]:
    """The other way: what `windows` reads."""
    if not model.window:
        return {"use_sliding_window": False}
    kinds = ["sliding_attention" if model.window_of(i) else "full_attention" for i in range(model.n_layers)]
    # Of transformers 4: layers from this one on.
    first = kinds.index("sliding_attention")
    return {
        "sliding_window": model.window, "use_sliding_window": True, "max_window_layers": first, "layer_types": kinds,
    }  # fmt: skip


def window_layers(options: Options, types: Any, n_layers: int, windowed: str, full: str) -> Fields:
    """The layers of one of two kinds; all layers where no kinds are given."""
    if types is None:
        return {}
    if len(types) != n_layers or not set(types) <= {windowed, full}:
        raise UserError(f"{options.where}: layer_types = {types!r}: must be {windowed} or {full} of each layer")
    layers = tuple(i for i, kind in enumerate(types) if kind == windowed)
    return {"window": 0} if not layers else {"window_layers": () if len(layers) == n_layers else layers}


first_positions = Layout(lambda array, model: array[: model.n_ctx], lambda ours: ours)
"""W_pos: [positions, D] of the positions that are used."""


def heads(prefix: str, out: str = "o_proj") -> dict[str, Part]:
    """Weights of queries, keys, values and output that lie in one tensor each."""
    of = {f"W_{letter}": Part(name=f"{prefix}{letter.lower()}_proj.weight", layout=heads_in) for letter in "QKV"}
    return of | {"W_O": Part(name=f"{prefix}{out}.weight", layout=heads_out)}


def head_biases(prefix: str, out: str = "o_proj") -> dict[str, Part]:
    """Their biases."""
    of = {f"b_{letter}": Part(name=f"{prefix}{letter.lower()}_proj.bias", layout=head_vectors) for letter in "QKV"}
    return of | {"b_O": Part(name=f"{prefix}{out}.bias")}


def fused(name: str, weights: Callable[[int], Layout], vectors: Callable[[int], Layout]) -> dict[str, Part]:
    """Weights and biases of queries, keys and values, of which each kind lies in one tensor."""
    of = {f"W_{letter}": Part(name=f"{name}.weight", layout=weights(i)) for i, letter in enumerate("QKV")}
    return of | {f"b_{letter}": Part(name=f"{name}.bias", layout=vectors(i)) for i, letter in enumerate("QKV")}


def linear(names: Mapping[str, str], layout: Layout | None = transposed) -> dict[str, Part]:
    """Weights and biases: `{"in": "mlp.fc1"}` is where W_in and b_in lie."""
    of = {f"W_{ours}": Part(name=f"{theirs}.weight", layout=layout) for ours, theirs in names.items()}
    return of | {f"b_{ours}": Part(name=f"{theirs}.bias") for ours, theirs in names.items()}


def layer_norms(names: Mapping[str, str]) -> dict[str, Part]:
    """Weights, and biases for `norm_biases` to fold: `{"ln1": "ln_1"}` is where ln1_w and ln1_b_ lie."""
    of = {f"{ours}_w": Part(name=f"{theirs}.weight") for ours, theirs in names.items()}
    return of | {f"{ours}_b_": Part(name=f"{theirs}.bias") for ours, theirs in names.items()}


def gpt2_sizes(options: Options) -> Fields:
    """Layers, widths, heads, vocabulary and context, as GPT-2 and GPT-J name them."""
    d_model = options.number("n_embd")
    return {
        "n_layers": options.number("n_layer"),
        "d_model": d_model,
        "n_heads": options.number("n_head"),
        "d_mlp": options.get("n_inner") or 4 * d_model,
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("n_positions"),
    }


_LAYER = "layers.{}."
ATTENTION = heads(f"{_LAYER}self_attn.") | head_biases(f"{_LAYER}self_attn.")
GATED_MLP = linear({"gate": f"{_LAYER}mlp.gate_proj", "in": f"{_LAYER}mlp.up_proj", "out": f"{_LAYER}mlp.down_proj"})
ENDS = {
    "W_E": Part(name="embed_tokens.weight"),
    "W_U": Part(name="lm_head.weight", layout=transposed),
    "ln_final_w": Part(name="norm.weight"),
}
PRE_NORMS = {
    "ln1_w": Part(name=f"{_LAYER}input_layernorm.weight"),
    "ln2_w": Part(name=f"{_LAYER}post_attention_layernorm.weight"),
}
LLAMA_PARTS = ENDS | PRE_NORMS | ATTENTION | GATED_MLP
ROTARY_TABLES = r".*rotary_emb\..*"
