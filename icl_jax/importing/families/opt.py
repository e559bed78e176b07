"""OPT, but for the one of 350 M, whose norms stand after the sums."""

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import ACTIVATIONS, ALL_BIASES
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import norm_biases
from icl_jax.importing.families.layouts import head_vectors, heads_in, heads_out, transposed

_UNUSED_POSITIONS = 2


def model(options: Options) -> Fields:
    options.only("do_layer_norm_before", True)
    options.only("enable_bias", True)
    options.only("layer_norm_elementwise_affine", True)
    d_model = options.number("hidden_size")
    options.only("word_embed_proj_dim", None, d_model)
    return {
        "n_layers": options.number("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": options.number("num_attention_heads"),
        "d_mlp": options.number("ffn_dim"),
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("max_position_embeddings"),
        "positions": "standard",
        "position_embedding": "learned",
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "activation": options.choice("activation_function", ACTIVATIONS),
        "biases": ALL_BIASES,
        "tied_unembedding": bool(options.get("tie_word_embeddings")),
    }


def _positions(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    return array[_UNUSED_POSITIONS : _UNUSED_POSITIONS + model.n_ctx]


_ATTENTION = "layers.{}.self_attn."
FAMILY = Family(
    name="opt",
    model_types=("opt",),
    defaults={
        "do_layer_norm_before": True, "enable_bias": True, "layer_norm_elementwise_affine": True,
        "activation_function": "relu", "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    model=model,
    parts={
        "W_E": Part(name="embed_tokens.weight"),
        "W_pos": Part(name="embed_positions.weight", layout=_positions),
        "W_U": Part(name="lm_head.weight", layout=transposed),
        "W_Q": Part(name=f"{_ATTENTION}q_proj.weight", layout=heads_in),
        "W_K": Part(name=f"{_ATTENTION}k_proj.weight", layout=heads_in),
        "W_V": Part(name=f"{_ATTENTION}v_proj.weight", layout=heads_in),
        "b_Q": Part(name=f"{_ATTENTION}q_proj.bias", layout=head_vectors),
        "b_K": Part(name=f"{_ATTENTION}k_proj.bias", layout=head_vectors),
        "b_V": Part(name=f"{_ATTENTION}v_proj.bias", layout=head_vectors),
        "W_O": Part(name=f"{_ATTENTION}out_proj.weight", layout=heads_out),
        "b_O": Part(name=f"{_ATTENTION}out_proj.bias"),
        "W_in": Part(name="layers.{}.fc1.weight", layout=transposed),
        "b_in": Part(name="layers.{}.fc1.bias"),
        "W_out": Part(name="layers.{}.fc2.weight", layout=transposed),
        "b_out": Part(name="layers.{}.fc2.bias"),
        "ln1_w": Part(name="layers.{}.self_attn_layer_norm.weight"),
        "ln1_b_": Part(name="layers.{}.self_attn_layer_norm.bias"),
        "ln2_w": Part(name="layers.{}.final_layer_norm.weight"),
        "ln2_b_": Part(name="layers.{}.final_layer_norm.bias"),
        "ln_final_w": Part(name="final_layer_norm.weight"),
        "ln_final_b_": Part(name="final_layer_norm.bias"),
    },
    folds=(norm_biases,),
    prefixes=("model.decoder.", "decoder."),
)  # fmt: skip
