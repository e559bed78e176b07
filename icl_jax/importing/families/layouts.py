"""How weights lie in files, one layer's array to ours. PyTorch's Linear is [out, in]; ours multiply row vectors."""

from math import prod

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.family import Layout

transposed = Layout(lambda array, _model: array.T, lambda ours: ours[::-1])
"""[out, in] to [in, out]."""


def _heads_in(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    return array.reshape(-1, model.head_width, array.shape[-1]).swapaxes(1, 2)


heads_in = Layout(_heads_in, lambda ours: (ours[0] * ours[2], ours[1]))
"""W_Q, W_K, W_V: [heads E, D] to [heads, D, E]."""
head_vectors = Layout(lambda array, model: array.reshape(-1, model.head_width), lambda ours: (prod(ours),))
"""b_Q, b_K, b_V: [heads E] to [heads, E]."""
heads_out = Layout(
    lambda array, model: array.T.reshape(-1, model.head_width, array.shape[0]),
    lambda ours: (ours[2], ours[0] * ours[1]),
)
"""W_O: [D, H E] to [H, E, D]."""
rows_out = Layout(
    lambda array, model: array.reshape(-1, model.head_width, array.shape[-1]),
    lambda ours: (ours[0] * ours[1], ours[2]),
)
"""GPT-2's c_proj [H E, D] to [H, E, D]."""


def block_in(index: int) -> Layout:
    """GPT-2's c_attn [D, 3 H E], q, k and v side by side, to [H, D, E]."""

    def read(array: np.ndarray, model: ModelConfig) -> np.ndarray:
        part = np.split(array, 3, axis=-1)[index]
        return part.reshape(part.shape[0], -1, model.head_width).swapaxes(0, 1)

    return Layout(read, lambda ours: (ours[1], 3 * ours[0] * ours[2]))


def block_vectors(index: int) -> Layout:
    """GPT-2's c_attn.bias [3 H E] to [H, E]."""
    return Layout(
        lambda array, model: np.split(array, 3)[index].reshape(-1, model.head_width), lambda ours: (3 * prod(ours),)
    )


def interleaved_in(index: int) -> Layout:
    """GPT-NeoX's and BLOOM's query_key_value, q, k and v of each head together: [H 3 E, D] to [H, D, E]."""
    return Layout(
        lambda array, model: array.reshape(-1, 3, model.head_width, array.shape[-1])[:, index].swapaxes(1, 2),
        lambda ours: (3 * ours[0] * ours[2], ours[1]),
    )


def interleaved_vectors(index: int) -> Layout:
    """Their bias [H 3 E] to [H, E]."""
    return Layout(lambda array, model: array.reshape(-1, 3, model.head_width)[:, index], lambda ours: (3 * prod(ours),))
