"""BLOOM: ALiBi, and a norm of the embedding."""

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import ALL_BIASES, fused, layer_norms, linear
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
    }
    | fused("h.{}.self_attention.query_key_value", interleaved_in, interleaved_vectors)
    | linear({"O": "h.{}.self_attention.dense"}, heads_out)
    | linear({"in": "h.{}.mlp.dense_h_to_4h", "out": "h.{}.mlp.dense_4h_to_h"})
    | layer_norms({"ln1": "h.{}.input_layernorm", "ln2": "h.{}.post_attention_layernorm", "ln_final": "ln_f"}),
    folds=(embedding_norm, norm_biases),
    prefixes=("transformer.",),
)  # fmt: skip
