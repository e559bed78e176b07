"""GPT-2, and CRFM's (Mistral's) GPT-2 models, whose scores are divided by the number of the layer."""

from typing import Any

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    ALL_BIASES,
    first_positions,
    fused,
    gpt2_sizes,
    layer_norms,
    linear,
)
from icl_jax.importing.families.family import Arrays, Family, Fields, Options, Part, Series
from icl_jax.importing.families.folds import norm_biases
from icl_jax.importing.families.layouts import block_in, block_vectors, rows_out, transposed


def model(options: Options) -> Fields:
    options.only("scale_attn_weights", True)
    options.only("add_cross_attention", False)
    options.ignore("n_ctx", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx")  # the last is folded
    return gpt2_sizes(options) | {
        "positions": "standard",
        "position_embedding": "learned",
        "norm": "layernorm",
        "norm_eps": options.number("layer_norm_epsilon"),
        "activation": options.choice("activation_function", ACTIVATIONS),
        "biases": ALL_BIASES,
        "tied_unembedding": bool(options.get("tie_word_embeddings")),
    }


def config(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_embd": model.d_model,
        "n_layer": model.n_layers,
        "n_head": model.n_heads,
        "n_inner": model.d_mlp,
        "vocab_size": model.vocab_size,
        "n_positions": model.n_ctx,
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": ACTIVATION_NAMES.get(model.activation),
        "tie_word_embeddings": model.tied_unembedding,
    }


def scale_by_layer(arrays: Arrays, _model: ModelConfig, options: Options) -> None:
    """scale_attn_by_inverse_layer_idx: scores of layer l over l + 1."""
    if options.get("scale_attn_by_inverse_layer_idx"):
        for name in ("W_Q", "b_Q"):
            scale = 1 / np.arange(1, len(arrays[name]) + 1, dtype=np.float32)
            arrays[name] = arrays[name] * scale.reshape(-1, *[1] * (arrays[name].ndim - 1))


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    defaults={
        "scale_attn_weights": True, "add_cross_attention": False, "layer_norm_epsilon": 1e-5, "n_positions": 1024,
        "activation_function": "gelu_new", "tie_word_embeddings": True,
    },
    model=model,
    parts={
        "W_E": Part(name="wte.weight"),
        "W_pos": Part(name="wpe.weight", layout=first_positions),
        "W_U": Part(name="lm_head.weight", layout=transposed),
    }
    | fused("h.{}.attn.c_attn", block_in, block_vectors)
    | linear({"O": "h.{}.attn.c_proj"}, rows_out)
    | linear({"in": "h.{}.mlp.c_fc", "out": "h.{}.mlp.c_proj"}, None)
    | layer_norms({"ln1": "h.{}.ln_1", "ln2": "h.{}.ln_2", "ln_final": "ln_f"}),
    folds=(norm_biases, scale_by_layer),
    prefixes=("transformer.",),
    left_out=r"h\.\d+\.attn\.(masked_)?bias",
    config=config,
    architecture="GPT2LMHeadModel",
    series=(Series(names="*-gpt2-*-x*", tokens_per_step=512 * 1024),),  # rows of Mistral's batch by their length
)  # fmt: skip
