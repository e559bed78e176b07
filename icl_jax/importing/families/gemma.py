"""Gemma 1 to 3 (text): embeddings are scaled, norms multiply by 1 + weight; 2 and 3 have norms on both sides."""

import numpy as np

from icl_jax.config import ModelConfig, UserError
from icl_jax.importing.families.common import (
    ACTIVATIONS,
    ATTENTION,
    DECODER,
    ENDS,
    GATED_MLP,
    PRE_NORMS,
    ROTARY_TABLES,
    decoder,
    rotary_of,
    windows,
)
from icl_jax.importing.families.family import Arrays, Family, Fields, Options, Part
from icl_jax.importing.families.folds import one_more, untie

_DEFAULTS = DECODER | {
    "head_dim": 256, "max_position_embeddings": 8192, "hidden_act": "gelu_pytorch_tanh",
    "use_bidirectional_attention": False,
}  # fmt: skip


def scaled_embedding(arrays: Arrays, model: ModelConfig, options: Options) -> None:
    """By the root of the width, rounded to the type that the weights are saved in."""
    untie(arrays)
    arrays["W_E"] = arrays["W_E"] * np.float32(np.asarray(model.d_model**0.5).astype(options.dtype))


def own_scale(arrays: Arrays, model: ModelConfig, options: Options) -> None:
    """query_pre_attn_scalar: scores over its root in place of that of the head's width."""
    scale = np.float32((model.head_width / options.number("query_pre_attn_scalar")) ** 0.5)
    name = "q_norm_w" if model.qk_norm == "head" else "W_Q"
    arrays[name] = arrays[name] * scale


def _gemma(options: Options) -> Fields:
    options.only("use_bidirectional_attention", False)
    options.ignore("query_pre_attn_scalar")  # folded
    activation = "hidden_activation" if options.get("hidden_activation") else "hidden_act"
    return decoder(options) | {
        "activation": options.choice(activation, ACTIVATIONS),
        "tied_unembedding": False,  # the scale is folded into the embedding alone
    }  # fmt: skip


def _gemma_2(options: Options) -> Fields:
    found = _gemma(options)
    every_other = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(found["n_layers"])]
    return found | windows(options.with_default(layer_types=every_other), found["n_layers"]) | {
        "norm_position": "both",
        "attn_soft_cap": float(options.get("attn_logit_softcapping") or 0.0),
        "logit_soft_cap": float(options.get("final_logit_softcapping") or 0.0),
    }  # fmt: skip


def _gemma_3(options: Options) -> Fields:
    of_types = options.get("rope_parameters") or {}
    options.get("rope_scaling")
    if "full_attention" in of_types:
        full, local = of_types["full_attention"], of_types["sliding_attention"]
    else:
        full = (options.get("rope_scaling") or {}) | {"rope_theta": options.number("rope_theta")}
        local = {"rope_theta": options.number("rope_local_base_freq")}
    if local.get("rope_type", "default") != "default":
        raise UserError(f"{options.where}: rope_type of sliding_attention = {local['rope_type']!r}: must be default")
    found = _gemma(options.replaced(rope_parameters={}, rope_scaling=None))
    n, every = found["n_layers"], int(options.get("sliding_window_pattern", "_sliding_window_pattern") or 6)
    types = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(n)]
    return found | rotary_of(full, options, found["d_head"]) | windows(options.with_default(layer_types=types), n) | {
        "norm_position": "both",
        "qk_norm": "head",
        "window_rotary_base": float(local["rope_theta"]),
        "attn_soft_cap": float(options.get("attn_logit_softcapping") or 0.0),
        "logit_soft_cap": float(options.get("final_logit_softcapping") or 0.0),
    }  # fmt: skip


_BOTH_NORMS = {
    "ln1_w": Part(name="layers.{}.input_layernorm.weight"),
    "ln1_post_w": Part(name="layers.{}.post_attention_layernorm.weight"),
    "ln2_w": Part(name="layers.{}.pre_feedforward_layernorm.weight"),
    "ln2_post_w": Part(name="layers.{}.post_feedforward_layernorm.weight"),
}
_QK_NORMS = {
    "q_norm_w": Part(name="layers.{}.self_attn.q_norm.weight"),
    "k_norm_w": Part(name="layers.{}.self_attn.k_norm.weight"),
}

GEMMA = Family(
    name="gemma",
    model_types=("gemma",),
    defaults=_DEFAULTS | {"tie_word_embeddings": True},
    model=_gemma,
    parts=ENDS | PRE_NORMS | ATTENTION | GATED_MLP,
    folds=(one_more, scaled_embedding),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
)
GEMMA_2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    defaults=_DEFAULTS | {
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    model=_gemma_2,
    parts=ENDS | _BOTH_NORMS | ATTENTION | GATED_MLP,
    folds=(one_more, scaled_embedding, own_scale),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
)  # fmt: skip
GEMMA_3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    defaults=_DEFAULTS | {
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    model=_gemma_3,
    parts=ENDS | _BOTH_NORMS | _QK_NORMS | ATTENTION | GATED_MLP,
    folds=(one_more, scaled_embedding, own_scale),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
)  # fmt: skip
