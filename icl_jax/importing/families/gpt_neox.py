"""GPT-NeoX: Pythia in all sizes and seeds."""

from icl_jax.importing.families.common import ACTIVATIONS, ALL_BIASES, rotary, sizes
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


_ATTENTION, _MLP = "layers.{}.attention.", "layers.{}.mlp."
FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    defaults={
        "attention_bias": True, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
        "rotary_emb_base": 10_000.0, "use_parallel_residual": True, "tie_word_embeddings": False,
        "max_position_embeddings": 2048,
    },
    model=model,
    parts={
        "W_E": Part(name="embed_in.weight"),
        "W_U": Part(name="embed_out.weight", layout=transposed),
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
        "ln1_w": Part(name="layers.{}.input_layernorm.weight"),
        "ln1_b_": Part(name="layers.{}.input_layernorm.bias"),
        "ln2_w": Part(name="layers.{}.post_attention_layernorm.weight"),
        "ln2_b_": Part(name="layers.{}.post_attention_layernorm.bias"),
        "ln_final_w": Part(name="final_layer_norm.weight"),
        "ln_final_b_": Part(name="final_layer_norm.bias"),
    },
    folds=(norm_biases,),
    prefixes=("gpt_neox.",),
    left_out=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\..*)",
    series=(Series(names="pythia-*", tokens_per_step=2**21),),
)  # fmt: skip
