"""How weights lie in files, one layer's array to ours. PyTorch's Linear is [out, in]; ours multiply row vectors."""

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.importing.families.family import Layout


def transposed(array: np.ndarray, _model: ModelConfig) -> np.ndarray:
    """[out, in] to [in, out]."""
    return array.T


def heads_in(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    """W_Q, W_K, W_V: [heads E, D] to [heads, D, E]."""
    return array.reshape(-1, model.head_width, array.shape[-1]).swapaxes(1, 2)


def head_vectors(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    """b_Q, b_K, b_V: [heads E] to [heads, E]."""
    return array.reshape(-1, model.head_width)


def heads_out(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    """W_O: [D, H E] to [H, E, D]."""
    return array.T.reshape(-1, model.head_width, array.shape[0])


def after(first: int) -> Layout:
    """Rows from `first` on."""
    return lambda array, _model: array[first:]


def block_in(index: int) -> Layout:
    """GPT-2's c_attn [D, 3 H E], q, k and v side by side, to [H, D, E]."""

    def layout(array: np.ndarray, model: ModelConfig) -> np.ndarray:
        part = np.split(array, 3, axis=-1)[index]
        return part.reshape(part.shape[0], -1, model.head_width).swapaxes(0, 1)

    return layout


def block_vectors(index: int) -> Layout:
    """GPT-2's c_attn.bias [3 H E] to [H, E]."""
    return lambda array, model: np.split(array, 3)[index].reshape(-1, model.head_width)


def rows_out(array: np.ndarray, model: ModelConfig) -> np.ndarray:
    """GPT-2's c_proj [H E, D] to [H, E, D]."""
    return array.reshape(-1, model.head_width, array.shape[-1])


def interleaved_in(index: int) -> Layout:
    """GPT-NeoX's and BLOOM's query_key_value, q, k and v of each head together: [H 3 E, D] to [H, D, E]."""
    return lambda array, model: array.reshape(-1, 3, model.head_width, array.shape[-1])[:, index].swapaxes(1, 2)


def interleaved_vectors(index: int) -> Layout:
    """Their bias [H 3 E] to [H, E]."""
    return lambda array, model: array.reshape(-1, 3, model.head_width)[:, index]
