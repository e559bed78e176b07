"""BLOOM: ALiBi, and a norm of the embedding."""

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import ALL_BIASES
from icl_jax.importing.families.family import Arrays, Family, Fields, Options, Part
from icl_jax.importing.families.folds import norm_biases, untie
from icl_jax.importing.families.layouts import heads_out, interleaved_in, interleaved_vectors, transposed


def model(options: Options) -> Fields:
    options.only("apply_residual_connection_post_layernorm", False)
    options.ignore(
        "slow_but_exact", "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "skip_bias_add",
        "skip_bias_add_qkv", "offset_alibi", "unk_token_id",
    )  # fmt: skip
    d_model = options.number("hidden_size", "n_embed")
    options.only("n_inner", None, 4 * d_model)
    return {
        "n_layers": options.number("n_layer", "num_hidden_layers"),
        "d_model": d_model,
        "n_heads": options.number("n_head", "num_attention_heads"),
        "d_mlp": 4 * d_model,
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("seq_length"),
        "positions": "alibi",
        "norm": "layernorm",
        "norm_eps": options.number("layer_norm_epsilon"),
        "activation": "gelu_tanh",
        "biases": ALL_BIASES,
    }


def embedding_norm(arrays: Arrays, model: ModelConfig, _options: Options) -> None:
    """LayerNorm of what is looked up, once and for all."""
    untie(arrays)
    x = arrays["W_E"] - arrays["W_E"].mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + np.float32(model.norm_eps))
    arrays["W_E"] = x * scale * arrays.pop("embedding_norm_w_") + arrays.pop("embedding_norm_b_")


_ATTENTION, _MLP = "h.{}.self_attention.", "h.{}.mlp."
FAMILY = Family(
    name="bloom",
    model_types=("bloom",),
    defaults={"apply_residual_connection_post_layernorm": False, "layer_norm_epsilon": 1e-5, "seq_length": 2048},
    model=model,
    parts={
        "W_E": Part(name="word_embeddings.weight"),
        "embedding_norm_w_": Part(name="word_embeddings_layernorm.weight"),
        "embedding_norm_b_": Part(name="word_embeddings_layernorm.bias"),
        "W_U": Part(name="lm_head.weight", layout=transposed),
        "W_Q": Part(name=f"{_ATTENTION}query_key_value.weight", layout=interleaved_in(0)),
        "W_K": Part(name=f"{_ATTENTION}query_key_value.weight", layout=interleaved_in(1)),
        "W_V": Part(name=f"{_ATTENTION}query_key_value.weight", layout=interleaved_in(2)),
        "b_Q": Part(name=f"{_ATTENTION}query_key_value.bias", layout=interleaved_vectors(0)),
        "b_K": Part(name=f"{_ATTENTION}query_key_value.bias", layout=interleaved_vectors(1)),
        "b_V": Part(name=f"{_ATTENTION}query_key_value.bias", layout=interleaved_vectors(2)),
        "W_O": Part(name=f"{_ATTENTION}dense.weight", layout=heads_out),
        "b_O": Part(name=f"{_ATTENTION}dense.bias"),
        "W_in": Part(name=f"{_MLP}dense_h_to_4h.weight", layout=transposed),
        "b_in": Part(name=f"{_MLP}dense_h_to_4h.bias"),
        "W_out": Part(name=f"{_MLP}dense_4h_to_h.weight", layout=transposed),
        "b_out": Part(name=f"{_MLP}dense_4h_to_h.bias"),
        "ln1_w": Part(name="h.{}.input_layernorm.weight"),
        "ln1_b_": Part(name="h.{}.input_layernorm.bias"),
        "ln2_w": Part(name="h.{}.post_attention_layernorm.weight"),
        "ln2_b_": Part(name="h.{}.post_attention_layernorm.bias"),
        "ln_final_w": Part(name="ln_f.weight"),
        "ln_final_b_": Part(name="ln_f.bias"),
    },
    folds=(embedding_norm, norm_biases),
    prefixes=("transformer.",),
)  # fmt: skip
