"""float32 means float32: JAX's default rounds the factors of its products to 10 bits on a GPU and to 7 on a TPU."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_P = ParamSpec("_P")
_R = TypeVar("_R")


def einsum(spec: str, *factors: jax.Array, preferred_element_type: DTypeLike | None = None) -> jax.Array:
    """`jnp.einsum` that takes all bits of float32 factors, and so do its derivatives. The model's only product."""
    is_float32 = any(factor.dtype == jnp.float32 for factor in factors)
    precision = jax.lax.Precision.HIGHEST if is_float32 else None
    return jnp.einsum(spec, *factors, precision=precision, preferred_element_type=preferred_element_type)


def matmul_precision(dtype: DTypeLike) -> AbstractContextManager[None]:
    """The same for the products of other code that is traced inside, such as JAX's kernels, by the factors' type.

    bfloat16 has no more than the default uses, and JAX's kernels for TPU refuse to be asked.
    """
    return jax.default_matmul_precision("highest" if jnp.dtype(dtype) == jnp.float32 else "default")


def exact_products(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function`, a measurement, with all bits of the factors of whatever products it takes."""

    @functools.wraps(function)
    def exact(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with matmul_precision(jnp.float32):
            return function(*args, **kwargs)

    return exact
