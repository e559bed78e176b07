"""Models that a class of `transformers` computes exactly, by the class, and such as only look like one."""

from typing import Any

_BIASES = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out")
_GPT = {"positions": "standard", "norm": "layernorm", "d_mlp": 17}
_NEOX = {"positions": "rotary", "norm": "layernorm", "d_mlp": 17, "activation": "gelu"}
_PHI = {"positions": "rotary", "norm": "layernorm", "d_mlp": 17, "parallel_residual": "one_norm"}
_LLAMA = {
    "positions": "rotary", "d_mlp": 17, "activation": "silu", "gated_mlp": True, "n_heads": 4, "n_kv_heads": 2,
    "d_head": 12, "norm_eps": 1e-6,
}  # fmt: skip
_LONGER = {"rotary_base": 50.0, "rotary_factor": 4.0, "rotary_original_ctx": 40}
_YARN = _LONGER | {"rotary_scaling": "yarn", "rotary_high_turns": 6.0, "rotary_low_turns": 0.5}
_OLMO = _LLAMA | {"qk_norm": "all", "norm_position": "post"}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", _GPT | {"tied_unembedding": True, "biases": _BIASES}),
    "GPT-2 without biases": ("gpt2", _GPT | {"activation": "relu"}),
    "GPT-2 with a bias of logits": ("icl_jax", _GPT | {"biases": (*_BIASES, "b_U")}),
    "GPT-2 of sinusoids": ("icl_jax", _GPT | {"position_embedding": "sinusoidal", "tied_unembedding": True}),
    "NeoX": ("gpt_neox", _NEOX | {"rotary_dim": 2, "parallel_residual": "two_norms"}),
    "NeoX in sequence": ("gpt_neox", _NEOX | {"rotary_base": 50.0, "tied_unembedding": True, "biases": _BIASES}),
    "NeoX with wide heads": ("icl_jax", _NEOX | {"d_head": 10}),
    "NeoX with grouped keys": ("icl_jax", _NEOX | {"n_heads": 4, "n_kv_heads": 2}),
    "Phi": ("phi", _PHI | {"biases": (*_BIASES, "b_U"), "rotary_dim": 4}),
    "Phi with grouped keys": ("phi", _PHI | {"n_heads": 4, "n_kv_heads": 2, "d_head": 10}),
    "Llama with biases": ("llama", _LLAMA | {"biases": ("b_Q", "b_O", "b_gate"), "tied_unembedding": True}),
    "Llama, linear": ("llama", _LLAMA | {"rotary_scaling": "linear", "rotary_factor": 4.0}),
    "Llama 3": ("llama", _LLAMA | _LONGER | {"rotary_scaling": "llama3"}),
    "Llama, YaRN": ("llama", _LLAMA | _YARN),
    "Llama of other activations": ("llama", _LLAMA | {"activation": "gelu_tanh"}),
    "Llama that turns half a head": ("icl_jax", _LLAMA | {"rotary_dim": 6}),
    "Llama with SoLU": ("icl_jax", _LLAMA | {"activation": "solu"}),
    "Llama of a width that heads do not divide": ("icl_jax", _LLAMA | {"n_heads": 5, "n_kv_heads": 5}),
    "Mistral": ("mistral", _LLAMA | {"window": 5}),
    "Qwen 2": ("qwen2", _LLAMA | {"window": 5, "window_layers": (0,), "biases": ("b_Q", "b_K", "b_V")}),
    "Qwen 2, YaRN": ("qwen2", _LLAMA | _YARN | {"window": 5, "biases": ("b_Q",)}),
    "Qwen 3": ("qwen3", _LLAMA | {"qk_norm": "head", "window": 5, "window_layers": (0,), "biases": ("b_Q",)}),
    "OLMo 2": ("olmo2", _OLMO | {"biases": ("b_K",)}),
    "OLMo 2, longer": ("olmo2", _OLMO | _LONGER | {"rotary_scaling": "llama3"}),
    "OLMo 2 with windows": ("icl_jax", _OLMO | {"window": 5}),
    "SmolLM 3": ("smollm3", _LLAMA | {"no_rotary_layers": (1,), "biases": ("b_in",)}),
    "SmolLM 3 with windows": ("smollm3", _LLAMA | {"no_rotary_layers": (1,), "window": 5, "window_layers": (1,)}),
    "no layers": ("icl_jax", {"n_layers": 0}),
    "no norms": ("icl_jax", {"norm": "none", "position_embedding": "sinusoidal"}),
}  # fmt: skip
"""Class and fields; sizes that are missing are the test's own, with learned positions and heads of 8 entries."""
