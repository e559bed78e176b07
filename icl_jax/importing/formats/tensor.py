"""A tensor of a file."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Tensor:
    """Known by shape and type; its numbers are read when asked for."""

    shape: tuple[int, ...]
    dtype: np.dtype
    """bfloat16 is that of ml_dtypes."""
    read: Callable[[], np.ndarray]


Tensors = dict[str, Tensor]
