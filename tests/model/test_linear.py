"""The CPU's form of a weight's gradient against the plain one, and where each is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_jax.model.linear import linear, weight_grad
from tests.float32_bounds import assert_within, product


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@given(
    n_rows=st.integers(1, 3), n_ctx=st.integers(1, 70), d_in=st.integers(1, 33), d_out=st.integers(1, 33),
    seed=st.integers(0, 2**16),
)  # fmt: skip
@example(n_rows=1, n_ctx=1, d_in=1, d_out=1, seed=0)
@example(n_rows=1, n_ctx=64, d_in=32, d_out=16, seed=1)
@settings(max_examples=4)
def test_linear_equals_a_product_and_its_gradients(n_rows: int, n_ctx: int, d_in: int, d_out: int, seed: int) -> None:
    x, W = _normal(seed, n_rows, n_ctx, d_in), _normal(seed + 1, d_in, d_out)
    y, pull_back = jax.vjp(jax.jit(linear), x, W)
    assert_within(y, product("btd,dm->btm", x, W))
    direction = _normal(seed + 2, *y.shape)
    dx, dW = pull_back(direction)
    assert_within(dx, product("btm,dm->btd", direction, W), "dx")
    assert_within(dW, product("btd,btm->dm", x, direction), "dW")


@pytest.mark.parametrize("first", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_lost(first: float) -> None:
    """The branch that the CPU's form takes by its first entry gives what the other would."""
    x_ND, dy_NM = _normal(0, 6, 3).at[0, 0].set(first), _normal(1, 6, 4)
    dW_DM = np.asarray(weight_grad(x_ND, dy_NM, jnp.float32))
    np.testing.assert_array_equal(np.isfinite(dW_DM), [[False] * 4, [True] * 4, [True] * 4])
    np.testing.assert_allclose(dW_DM, x_ND.T @ dy_NM, rtol=1e-5)


def test_sums_of_half_precision_are_taken_in_single() -> None:
    x_ND, dy_NM = (_normal(seed, 512, 8).astype(jnp.bfloat16) for seed in (0, 1))
    dW_DM = weight_grad(x_ND, dy_NM, jnp.float32)
    assert dW_DM.dtype == jnp.float32
    exact = np.asarray(x_ND, np.float64).T @ np.asarray(dy_NM, np.float64)
    np.testing.assert_allclose(dW_DM, exact, atol=1e-3)  # rounded to half precision it would be off by 0.1


@pytest.mark.parametrize(("platform", "has_own_form"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_other_platforms_keep_the_plain_product(platform: str, has_own_form: bool) -> None:
    def loss(x: jax.Array, W: jax.Array) -> jax.Array:
        return jnp.sum(linear(x, W))

    traced = jax.jit(jax.grad(loss, argnums=(0, 1))).trace(_normal(0, 2, 5, 3), _normal(1, 3, 4))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == has_own_form
    assert text.count("stablehlo.dot_general") == (3 if has_own_form else 2)  # that of dx, and each branch's of dW
