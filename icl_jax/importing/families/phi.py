"""Phi 1, 1.5 and 2: attention and MLP side by side after one norm, half of each head rotated."""

from icl_jax.importing.families.common import ACTIVATIONS, ALL_BIASES, ATTENTION, ROTARY_TABLES, rotary, sizes
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import norm_biases
from icl_jax.importing.families.layouts import heads_out, transposed


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


FAMILY = Family(
    name="phi",
    model_types=("phi",),
    defaults={
        "qk_layernorm": False, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5,
        "rope_theta": 10_000.0, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    },
    model=model,
    parts=ATTENTION | {
        "W_O": Part(name="layers.{}.self_attn.dense.weight", layout=heads_out),
        "b_O": Part(name="layers.{}.self_attn.dense.bias"),
        "W_E": Part(name="embed_tokens.weight"),
        "W_U": Part(name="lm_head.weight", layout=transposed),
        "b_U": Part(name="lm_head.bias"),
        "W_in": Part(name="layers.{}.mlp.fc1.weight", layout=transposed),
        "b_in": Part(name="layers.{}.mlp.fc1.bias"),
        "W_out": Part(name="layers.{}.mlp.fc2.weight", layout=transposed),
        "b_out": Part(name="layers.{}.mlp.fc2.bias"),
        "ln1_w": Part(name="layers.{}.input_layernorm.weight"),
        "ln1_b_": Part(name="layers.{}.input_layernorm.bias"),
        "ln_final_w": Part(name="final_layernorm.weight"),
        "ln_final_b_": Part(name="final_layernorm.bias"),
    },
    folds=(norm_biases,),
    prefixes=("model.",),
    left_out=ROTARY_TABLES,
)  # fmt: skip
