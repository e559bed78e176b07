"""float32 means float32: JAX's default rounds the factors of its products to 10 bits on a GPU and to 7 on a TPU."""

from contextlib import AbstractContextManager

import jax
from jax.typing import DTypeLike


def matmul_precision(dtype: DTypeLike) -> AbstractContextManager[None]:
    """For what is traced inside: all bits of factors of this type.

    bfloat16 has no more than the default uses, and JAX's kernels for TPU refuse to be asked.
    """
    return jax.default_matmul_precision("highest" if jax.numpy.dtype(dtype) == jax.numpy.float32 else "default")
