"""GPT-NeoX: Pythia in all sizes and seeds."""

from typing import Any

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    ALL_BIASES,
    fused,
    layer_norms,
    linear,
    rotary,
    sizes,
    sizes_of,
)
from icl_jax.importing.families.family import Family, Fields, Options, Part, Series
from icl_jax.importing.families.folds import norm_biases
from icl_jax.importing.families.layouts import heads_out, interleaved_in, interleaved_vectors, transposed


def model(options: Options) -> Fields:
    options.only("attention_bias", True)
    found = sizes(options)
    return found | rotary(options, found["d_head"]) | {
        "norm": "layernorm",
        "norm_eps": options.number("layer_norm_eps"),
        "activation": options.choice("hidden_act", ACTIVATIONS),
        "biases": ALL_BIASES,
        "parallel_residual": "two_norms" if options.get("use_parallel_residual") else "none",
    }  # fmt: skip


def config(model: ModelConfig) -> dict[str, Any]:
    words = sizes_of(model)
    del words["num_key_value_heads"], words["head_dim"]  # it has neither
    return words | {
        "layer_norm_eps": model.norm_eps,
        "hidden_act": ACTIVATION_NAMES.get(model.activation),
        "rotary_pct": (model.rotary_dim or model.head_width) / model.head_width,
        "rotary_emb_base": model.rotary_base,
        "use_parallel_residual": model.parallel_residual == "two_norms",
    }


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    defaults={
        "attention_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
        "rotary_emb_base": 10_000.0, "use_parallel_residual": True, "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    },
    model=model,
    parts={"W_E": Part(name="embed_in.weight"), "W_U": Part(name="embed_out.weight", layout=transposed)}
    | fused("layers.{}.attention.query_key_value", interleaved_in, interleaved_vectors)
    | linear({"O": "layers.{}.attention.dense"}, heads_out)
    | linear({"in": "layers.{}.mlp.dense_h_to_4h", "out": "layers.{}.mlp.dense_4h_to_h"})
    | layer_norms({
        "ln1": "layers.{}.input_layernorm", "ln2": "layers.{}.post_attention_layernorm",
        "ln_final": "final_layer_norm",
    }),
    folds=(norm_biases,),
    prefixes=("gpt_neox.",),
    left_out=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\..*)",
    config=config,
    architecture="GPTNeoXForCausalLM",
    series=(Series(names="pythia-*", tokens_per_step=2**21),),
)  # fmt: skip
