"""GPT-J: attention and MLP side by side after one norm, rotary embeddings of neighbours."""

from icl_jax.importing.families.common import ACTIVATIONS
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import halves_of_pairs, norm_biases
from icl_jax.importing.families.layouts import heads_in, heads_out, transposed


def model(options: Options) -> Fields:
    options.ignore("n_ctx", "rotary", "scale_attn_weights")
    d_model = options.number("n_embd")
    return {
        "n_layers": options.number("n_layer"),
        "d_model": d_model,
        "n_heads": options.number("n_head"),
        "d_mlp": options.get("n_inner") or 4 * d_model,
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("n_positions"),
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
    parts={
        "W_E": Part(name="wte.weight"),
        "W_U": Part(name="lm_head.weight", layout=transposed),
        "b_U": Part(name="lm_head.bias"),
        "W_Q": Part(name="h.{}.attn.q_proj.weight", layout=heads_in),
        "W_K": Part(name="h.{}.attn.k_proj.weight", layout=heads_in),
        "W_V": Part(name="h.{}.attn.v_proj.weight", layout=heads_in),
        "W_O": Part(name="h.{}.attn.out_proj.weight", layout=heads_out),
        "W_in": Part(name="h.{}.mlp.fc_in.weight", layout=transposed),
        "b_in": Part(name="h.{}.mlp.fc_in.bias"),
        "W_out": Part(name="h.{}.mlp.fc_out.weight", layout=transposed),
        "b_out": Part(name="h.{}.mlp.fc_out.bias"),
        "ln1_w": Part(name="h.{}.ln_1.weight"),
        "ln1_b_": Part(name="h.{}.ln_1.bias"),
        "ln_final_w": Part(name="ln_f.weight"),
        "ln_final_b_": Part(name="ln_f.bias"),
    },
    folds=(norm_biases, halves_of_pairs),
    prefixes=("transformer.",),
    left_out=r"h\.\d+\.attn\.(masked_)?bias",
)  # fmt: skip
