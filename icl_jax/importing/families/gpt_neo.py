"""GPT-Neo and TinyStories: windows in every other layer, scores that are not scaled."""

from icl_jax.config import UserError
from icl_jax.importing.families.common import (
    ACTIVATIONS,
    ALL_BIASES,
    first_positions,
    heads,
    layer_norms,
    linear,
    window_layers,
)
from icl_jax.importing.families.family import Family, Fields, Options, Part
from icl_jax.importing.families.folds import no_scale, norm_biases
from icl_jax.importing.families.layouts import transposed


def model(options: Options) -> Fields:
    d_model, n_layers = options.number("hidden_size"), options.number("num_layers")
    options.ignore("attention_layers")  # what attention_types says, written out
    kinds = [kind for names, n in options.get("attention_types") for _ in range(n) for kind in names]
    if len(kinds) != n_layers:
        raise UserError(
            f"{options.where}: attention_types = {options.get('attention_types')}: must be of {n_layers} layers"
        )
    return {
        "n_layers": n_layers,
        "d_model": d_model,
        "n_heads": options.number("num_heads"),
        "d_mlp": options.get("intermediate_size") or 4 * d_model,
        "vocab_size": options.number("vocab_size"),
        "n_ctx": options.number("max_position_embeddings"),
        "positions": "standard",
        "position_embedding": "learned",
        "norm": "layernorm",
        "norm_eps": options.number("layer_norm_epsilon"),
        "activation": options.choice("activation_function", ACTIVATIONS),
        "biases": ALL_BIASES,
        "window": options.number("window_size"),
        "tied_unembedding": bool(options.get("tie_word_embeddings")),
    } | window_layers(options, kinds, n_layers, "local", "global")


FAMILY = Family(
    name="gpt_neo",
    model_types=("gpt_neo",),
    defaults={
        "attention_types": [[["global", "local"], 12]], "max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new", "window_size": 256, "tie_word_embeddings": True,
    },
    model=model,
    parts={
        "W_E": Part(name="wte.weight"),
        "W_pos": Part(name="wpe.weight", layout=first_positions),
        "W_U": Part(name="lm_head.weight", layout=transposed),
        "b_O": Part(name="h.{}.attn.attention.out_proj.bias"),
    }
    | heads("h.{}.attn.attention.", "out_proj")
    | linear({"in": "h.{}.mlp.c_fc", "out": "h.{}.mlp.c_proj"})
    | layer_norms({"ln1": "h.{}.ln_1", "ln2": "h.{}.ln_2", "ln_final": "ln_f"}),
    folds=(norm_biases, no_scale),
    prefixes=("transformer.",),
    left_out=r"h\.\d+\.attn\.attention\.(masked_)?bias",
)  # fmt: skip
