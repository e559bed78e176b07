"""Models that TransformerLens saved, a config.json of its own beside a .pth: attention-only, GELU and SoLU models."""

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.common import ALL_BIASES, first_positions
from icl_jax.importing.families.family import Arrays, Family, Fields, Options, Part
from icl_jax.importing.families.folds import norm_biases

_ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "silu": "silu",
    "solu": "solu", "solu_ln": "solu_ln",
}  # fmt: skip
_OFF = (
    "final_rms", "use_local_attn", "scale_attn_by_inverse_layer_idx", "parallel_attn_mlp", "gated_mlp", "use_qk_norm",
    "use_normalization_before_and_after", "post_embedding_ln", "rotary_adjacent_pairs", "tie_word_embeddings",
)  # fmt: skip
_CHANGING = (
    *_OFF, "normalization", "normalization_type", "attn_only", "act_fn", "shortformer_pos", "positional_embedding_type",
    "use_attn_scale", "attn_scale", "attention_dir", "num_experts", "n_key_value_heads", "rotary_dim", "rotary_base",
    "attn_scores_soft_cap", "output_logits_soft_cap", "window_size", "attn_types", "d_vocab_out",
    "NTK_original_ctx_len", "use_NTK_by_parts_rope", "eps",
)  # fmt: skip
"""Of its config; what else stands there is of training or of the machine."""


def model(options: Options) -> Fields:
    options.ignore_all_but(*_CHANGING)
    for name in _OFF:
        options.only(name, None, False)
    options.only("use_attn_scale", None, True)
    options.only("attn_scale", None, -1.0, float(np.sqrt(options.number("d_head"))))
    options.only("attention_dir", None, "causal")
    n_heads = options.number("n_heads")
    options.only("n_key_value_heads", None, n_heads)
    options.only("d_vocab_out", None, -1, options.number("d_vocab"))
    for name in ("attn_scores_soft_cap", "output_logits_soft_cap"):
        options.only(name, None, -1, -1.0)
    options.ignore("window_size", "attn_types", "NTK_original_ctx_len", "rotary_dim", "rotary_base")  # of what is off
    if options.get("shortformer_pos") is not None:
        positions = "shortformer" if options.get("shortformer_pos") else "standard"
    else:
        names = {name: name for name in ("standard", "shortformer")}
        positions = options.choice("positional_embedding_type", names)
    norms = {"LN": "layernorm", "LNPre": "layernorm", "none": "none"}
    options.ignore("normalization", "normalization_type")
    norm = options.replaced(norm=options.get("normalization", "normalization_type") or "none").choice("norm", norms)
    is_attention = bool(options.get("attn_only"))
    activation = {} if is_attention else {"activation": options.choice("act_fn", _ACTIVATIONS)}
    options.ignore("act_fn")
    return activation | {
        "n_layers": options.number("n_layers"),
        "d_model": options.number("d_model"),
        "n_heads": n_heads,
        "d_head": options.number("d_head"),
        "d_mlp": 0 if is_attention else options.number("d_mlp"),
        "vocab_size": options.number("d_vocab"),
        "n_ctx": options.number("n_ctx"),
        "positions": positions,
        "position_embedding": "learned",
        "norm": norm,
        "norm_eps": options.number("eps"),
        "biases": tuple(b for b in ALL_BIASES if not (is_attention and b in ("b_in", "b_out"))),
    }


def solu_norm(arrays: Arrays, _model: ModelConfig, _options: Options) -> None:
    """The norm of SoLU's output: its weights into W_out, its biases into b_out."""
    weight, bias = arrays.pop("solu_w_", None), arrays.pop("solu_b_", None)
    if bias is not None:
        arrays["b_out"] = arrays["b_out"] + np.einsum("nm,nmd->nd", bias, arrays["W_out"])
    if weight is not None:
        arrays["W_out"] = arrays["W_out"] * weight[..., None]


_LAYER = "blocks.{}."
FAMILY = Family(
    name="transformer_lens",
    model_types=("hooked_transformer",),
    defaults={"eps": 1e-5, "positional_embedding_type": "standard"},
    model=model,
    parts={
        "W_E": Part(name="embed.W_E"),
        "W_pos": Part(name="pos_embed.W_pos", layout=first_positions),
        "W_U": Part(name="unembed.W_U"),
        "b_U": Part(name="unembed.b_U"),
        **{f"{kind}_{letter}": Part(name=f"{_LAYER}attn.{kind}_{letter}") for kind in "Wb" for letter in "QKVO"},
        **{name: Part(name=f"{_LAYER}mlp.{name}") for name in ("W_in", "W_out", "b_in", "b_out")},
        "solu_w_": Part(name=f"{_LAYER}mlp.ln.w"),
        "solu_b_": Part(name=f"{_LAYER}mlp.ln.b"),
        "ln1_w": Part(name=f"{_LAYER}ln1.w"),
        "ln1_b_": Part(name=f"{_LAYER}ln1.b"),
        "ln2_w": Part(name=f"{_LAYER}ln2.w"),
        "ln2_b_": Part(name=f"{_LAYER}ln2.b"),
        "ln_final_w": Part(name="ln_final.w"),
        "ln_final_b_": Part(name="ln_final.b"),
    },
    folds=(solu_norm, norm_biases),
    prefixes=("state_dict.", "model."),
    norms_without_weights=lambda options: options.get("normalization", "normalization_type") == "LNPre",
    left_out=r"blocks\.\d+\.(attn\.(mask|IGNORE|rotary_\w+)|mlp\.ln\.\w+_hook)",
)  # fmt: skip
