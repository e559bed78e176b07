"""Phi 1, 1.5 and 2: attention and MLP side by side after one norm, half of each head rotated."""

from typing import Any

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import (
    ACTIVATION_NAMES,
    ACTIVATIONS,
    ALL_BIASES,
    ATTENTION,
    ROTARY_TABLES,
    layer_norms,
    linear,
    rotary,
    rotary_words,
    sizes,
    sizes_of,
)
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import norm_biases
from icl_jax.importing.families.layouts import heads_out


def model(options: Options) -> Fields:
    options.only("qk_layernorm", False)
    found = sizes(options)
    return found | rotary(options, found["d_head"]) | {
        "norm": "layernorm",
        "norm_eps": options.number("layer_norm_eps"),
        "activation": options.choice("hidden_act", ACTIVATIONS),
        "biases": ALL_BIASES,
        "parallel_residual": "one_norm",
    }  # fmt: skip


def config(model: ModelConfig) -> dict[str, Any]:
    return {"partial_rotary_factor": 1.0} | sizes_of(model) | rotary_words(model) | {
        "layer_norm_eps": model.norm_eps,
        "hidden_act": ACTIVATION_NAMES.get(model.activation),
    }  # fmt: skip


FAMILY = Family(
    name="phi",
    model_types=("phi",),
    defaults={
        "qk_layernorm": False, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5,
        "rope_theta": 10_000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    },
    model=model,
    parts=ATTENTION
    | {"W_E": Part(name="embed_tokens.weight")}
    | linear({"O": "layers.{}.self_attn.dense"}, heads_out)
    | linear({"U": "lm_head", "in": "layers.{}.mlp.fc1", "out": "layers.{}.mlp.fc2"})
    | layer_norms({"ln1": "layers.{}.input_layernorm", "ln_final": "final_layernorm"}),
    folds=(norm_biases,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
    config=config,
    architecture="PhiForCausalLM",
)  # fmt: skip
