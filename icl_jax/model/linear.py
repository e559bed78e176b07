"""x W in a training step. On a CPU the gradient of W has a form of its own, up to twice as fast as XLA's."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from icl_jax.model.precision import einsum


def _product(x_ND: jax.Array, dy_NM: jax.Array, dtype: DTypeLike) -> jax.Array:
    return einsum("ND,NM->DM", x_ND, dy_NM, preferred_element_type=dtype)


def _product_cpu(x_ND: jax.Array, dy_NM: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A sum over the first axis of both runs at half the speed of one over the last of x, so x is transposed first.

    XLA must be kept from undoing that: the barrier stops it from folding the copy into the product, the branch from
    fusing into the copy what made x, which would then be made entry by entry, ten times slower than a plain copy.
    """

    def transposed(x_ND: jax.Array, dy_NM: jax.Array) -> jax.Array:
        x_DN = jax.lax.optimization_barrier(x_ND.T)
        return einsum("DN,NM->DM", x_DN, dy_NM, preferred_element_type=dtype)

    # NaN takes either branch to NaN.
    return jax.lax.cond(x_ND[0, 0] < jnp.inf, transposed, lambda x, dy: _product(x, dy, dtype), x_ND, dy_NM)


def weight_grad(x_ND: Float[Array, "N D"], dy_NM: Float[Array, "N M"], dtype: DTypeLike) -> Float[Array, "D M"]:
    """The gradient of W where y = x W: x's transpose times the gradient of y, summed over N in `dtype`."""
    return jax.lax.platform_dependent(
        x_ND,
        dy_NM,
        cpu=lambda x, dy: _product_cpu(x, dy, dtype),
        default=lambda x, dy: _product(x, dy, dtype),
    )


@jax.custom_vjp
def linear(x: Float[Array, "B T D"], W: Float[Array, "D M"]) -> Float[Array, "B T M"]:
    """x W, differentiable in reverse mode alone."""
    return einsum("BTD,DM->BTM", x, W)


def _fwd(x: jax.Array, W: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, W), (x, W)


def _bwd(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, W = saved
    dW = weight_grad(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]), W.dtype)
    return einsum("BTM,DM->BTD", dy, W), dW


linear.defvjp(_fwd, _bwd)
