"""GPT-J: attention and MLP side by side after one norm, rotary embeddings of neighbours."""

from icl_jax.importing.families.common import ACTIVATIONS, gpt2_sizes, heads, layer_norms, linear
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import halves_of_pairs, norm_biases


def model(options: Options) -> Fields:
    options.ignore("n_ctx", "rotary", "scale_attn_weights")
    return gpt2_sizes(options) | {
        "positions": "rotary",
        "rotary_dim": options.get("rotary_dim") or 0,
        "norm": "layernorm",
        "norm_eps": options.number("layer_norm_epsilon"),
        "activation": options.choice("activation_function", ACTIVATIONS),
        "biases": ("b_Q", "b_K", "b_V", "b_in", "b_out", "b_U"),
        "parallel_residual": "one_norm",
        "tied_unembedding": bool(options.get("tie_word_embeddings")),
    }


FAMILY = Family(
    name="gptj",
    model_types=("gptj",),
    defaults={
        "rotary_dim": 64, "n_positions": 2048, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    },
    model=model,
    parts=linear({"U": "lm_head"})
    | {"W_E": Part(name="wte.weight")}
    | heads("h.{}.attn.", "out_proj")
    | linear({"in": "h.{}.mlp.fc_in", "out": "h.{}.mlp.fc_out"})
    | layer_norms({"ln1": "h.{}.ln_1", "ln_final": "ln_f"}),
    folds=(norm_biases, halves_of_pairs),
    prefixes=("transformer.",),
    left_out=r"h\.\d+\.attn\.(masked_)?bias",
)  # fmt: skip
