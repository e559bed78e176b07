"""OPT, but for the one of 350 M, whose norms stand after the sums."""

from icl_jax.config import UserError
from icl_jax.importing.families.common import ACTIVATIONS, ALL_BIASES, head_biases, heads, layer_norms, linear
from icl_jax.importing.families.family import Family, Fields, Layout, Options, Part
from icl_jax.importing.families.folds import norm_biases
from icl_jax.importing.families.layouts import transposed

_UNUSED_POSITIONS = 2


def model(options: Options) -> Fields:
    if options.get("do_layer_norm_before") is False:
        what = "norms of the sums themselves, as OPT-350m alone has them, are not represented here"
        raise UserError(f"{options.where}: do_layer_norm_before = False: {what}")
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


_positions = Layout(
    lambda array, model: array[_UNUSED_POSITIONS : _UNUSED_POSITIONS + model.n_ctx],
    lambda ours: (_UNUSED_POSITIONS + ours[0], ours[1]),
)


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
    }
    | heads("layers.{}.self_attn.", "out_proj")
    | head_biases("layers.{}.self_attn.", "out_proj")
    | linear({"in": "layers.{}.fc1", "out": "layers.{}.fc2"})
    | layer_norms({
        "ln1": "layers.{}.self_attn_layer_norm", "ln2": "layers.{}.final_layer_norm", "ln_final": "final_layer_norm",
    }),
    folds=(norm_biases,),
    prefixes=("model.decoder.", "decoder."),
)  # fmt: skip
