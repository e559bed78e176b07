"""What is absorbed in the weights, so that the model needs no option for it.

Arrays are whole, [layer, ...], float32.
"""

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.family import Arrays, Options


def norm_biases(arrays: Arrays, model: ModelConfig, _options: Options) -> None:
    """ln1_b_, ln2_b_, ln_final_b_: x W with x + b in place of x is x W + b W, a bias of what reads the norm."""
    ln1, ln2, final = (arrays.pop(name, None) for name in ("ln1_b_", "ln2_b_", "ln_final_b_"))
    if ln1 is not None:
        for letter in "QKV":
            _add(arrays, f"b_{letter}", np.einsum("nd,nhde->nhe", ln1, arrays[f"W_{letter}"]))
    before_mlp = ln1 if model.parallel_residual == "one_norm" else ln2
    if before_mlp is not None:
        _add(arrays, "b_in", np.einsum("nd,ndm->nm", before_mlp, arrays["W_in"]))
        if "W_gate" in arrays:
            _add(arrays, "b_gate", np.einsum("nd,ndm->nm", before_mlp, arrays["W_gate"]))
    if final is not None:
        W_U = arrays["W_E"].T if model.tied_unembedding else arrays["W_U"]
        _add(arrays, "b_U", final @ W_U)


def _add(arrays: Arrays, name: str, bias: np.ndarray) -> None:
    arrays[name] = arrays[name] + bias if name in arrays else bias


def one_more(arrays: Arrays, _model: ModelConfig, _options: Options) -> None:
    """Gemma's norms multiply by 1 + weight."""
    for name in arrays:
        if name.endswith(("ln1_w", "ln2_w", "ln_final_w", "_post_w", "_norm_w")):
            arrays[name] = arrays[name] + 1


def untie(arrays: Arrays) -> None:
    """The unembedding, before the embedding is changed."""
    arrays.setdefault("W_U", arrays["W_E"].T.copy())


def halves_of_pairs(arrays: Arrays, model: ModelConfig, _options: Options) -> None:
    """Rotary embeddings that turn neighbours (0, 1), (2, 3): into ours, which turn i and i + half."""
    n = model.rotary_dim or model.head_width
    order = np.concatenate([np.arange(0, n, 2), np.arange(1, n, 2), np.arange(n, model.head_width)])
    for name in ("W_Q", "W_K", "b_Q", "b_K"):
        if name in arrays:
            arrays[name] = arrays[name][..., order]


def no_scale(arrays: Arrays, model: ModelConfig, _options: Options) -> None:
    """Scores that are not divided by the root of the head's width: the queries are as much larger."""
    for name in ("W_Q", "b_Q"):
        if name in arrays:
            arrays[name] = arrays[name] * np.float32(np.sqrt(model.head_width))
