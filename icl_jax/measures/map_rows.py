"""A function of some rows, over all rows: activations then stay in cache, and memory is bounded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

TOKENS_AT_A_TIME = 4096


def map_rows(fn: Callable[..., Any], *arrays: jax.Array | np.ndarray, n_at_a_time: int | None = None) -> Any:
    """`fn(*arrays)` -> arrays with the row in front, as `arrays` have it, for `n_at_a_time` rows after the other.

    Default: about 4,096 tokens' worth. The last group is filled up with rows of zeros, whose answers are dropped.
    """
    n_rows, n_tokens = arrays[0].shape[:2]
    n_each = min(n_rows, n_at_a_time or max(1, TOKENS_AT_A_TIME // max(1, n_tokens - 1)))

    def grouped(array: jax.Array | np.ndarray) -> jax.Array:
        filled = jnp.pad(jnp.asarray(array), ((0, -n_rows % n_each), *[(0, 0)] * (array.ndim - 1)))
        return filled.reshape(-1, n_each, *array.shape[1:])

    found = jax.lax.map(lambda group: fn(*group), tuple(grouped(array) for array in arrays))
    return jax.tree.map(lambda answer: answer.reshape(-1, *answer.shape[2:])[:n_rows], found)
