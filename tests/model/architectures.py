"""One list of architectures: every option of `ModelConfig` by itself and in the company of its families.

The tests of the forward pass, of the step, of resuming, of several devices, of measurements, of export and of sizes
take their models from here.
"""

from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "biases": {"biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"), "d_mlp": 17},
    "wide heads": {"d_head": 6, "norm_eps": 1e-2},
    "gelu": {"activation": "gelu", "d_mlp": 17},
    "silu": {"activation": "silu", "d_mlp": 17},
    "relu": {"activation": "relu", "d_mlp": 17},
    "relu2": {"activation": "relu2", "d_mlp": 17},
    "solu": {"activation": "solu", "d_mlp": 17},
    "solu_ln": {"activation": "solu_ln", "d_mlp": 17},
    "gated": {"gated_mlp": True, "d_mlp": 17, "biases": ("b_in", "b_gate", "b_out")},
    "partial rotary": {"positions": "rotary", "rotary_dim": 2, "rotary_base": 500.0},
    "linear": {"positions": "rotary", "rotary_scaling": "linear", "rotary_factor": 2.0, "d_head": 6},
    "llama3": {
        "positions": "rotary", "d_head": 12, "rotary_base": 50.0, "rotary_scaling": "llama3", "rotary_factor": 4.0,
        "rotary_original_ctx": 40,
    },
    "yarn": {
        "positions": "rotary", "d_head": 12, "rotary_base": 50.0, "rotary_scaling": "yarn", "rotary_factor": 4.0,
        "rotary_original_ctx": 40, "rotary_high_turns": 6.0, "rotary_low_turns": 0.5,
    },
    "no rotary in layer 1": {"positions": "rotary", "no_rotary_layers": (1,)},
    "alibi": {"positions": "alibi", "d_mlp": 17},
    "window": {"window": 3},
    "window in layer 0": {"window": 4, "window_layers": (0,), "positions": "rotary", "window_rotary_base": 100.0},
    "grouped keys": {"n_heads": 4, "n_kv_heads": 2},
    "one key head": {"n_kv_heads": 1, "biases": ("b_K", "b_V"), "smeared_keys": True},
    "norm of queries and keys": {"qk_norm": "head", "positions": "rotary", "norm": "layernorm"},
    "one norm of all keys": {"qk_norm": "all", "n_heads": 4, "n_kv_heads": 2, "biases": ("b_Q", "b_K")},
    "norm of what is written": {"norm_position": "post", "d_mlp": 17, "biases": ("b_O", "b_out")},
    "norms on both sides": {"norm_position": "both", "d_mlp": 17, "norm": "layernorm"},
    "parallel, one norm": {"parallel_residual": "one_norm", "d_mlp": 17},
    "parallel, two norms": {"parallel_residual": "two_norms", "d_mlp": 17, "norm": "layernorm"},
    "key offset": {"key_offset": 3, "positions": "rotary", "rotary_dim": 2, "d_head": 6, "n_heads": 4, "n_kv_heads": 2},
    "smear gate": {"smear_gate": True, "norm": "layernorm", "positions": "standard"},
    "soft caps": {"attn_soft_cap": 1.5, "logit_soft_cap": 2.0},
}  # fmt: skip
"""By what they are about; sizes that are missing are the test's own, with heads of at least 4 entries."""

FAMILIES: dict[str, dict[str, Any]] = {
    "GPT-2": {
        "positions": "standard", "position_embedding": "learned", "norm": "layernorm", "d_mlp": 17,
        "biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"), "tied_unembedding": True,
    },
    "GPT-NeoX": {
        "positions": "rotary", "rotary_dim": 2, "norm": "layernorm", "d_mlp": 17, "activation": "gelu",
        "biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"), "parallel_residual": "two_norms",
    },
    "Llama": {
        "positions": "rotary", "d_mlp": 17, "activation": "silu", "gated_mlp": True, "n_heads": 4, "n_kv_heads": 2,
        "d_head": 6, "norm_eps": 1e-6,
    },
    "OLMo 2": {
        "positions": "rotary", "d_mlp": 17, "activation": "silu", "gated_mlp": True, "norm_position": "post",
        "qk_norm": "all", "rotary_base": 500.0,
    },
    "Gemma 2": {
        "positions": "rotary", "d_mlp": 17, "gated_mlp": True, "n_heads": 4, "n_kv_heads": 2, "d_head": 6,
        "norm_position": "both", "window": 4, "window_layers": (0,), "attn_soft_cap": 5.0, "logit_soft_cap": 3.0,
    },
    "BLOOM": {
        "positions": "alibi", "norm": "layernorm", "d_mlp": 17, "n_heads": 3, "d_head": 6,
        "biases": ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"),
    },
}  # fmt: skip
"""Options as public models combine them."""
