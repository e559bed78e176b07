"""The chunked cross-entropy against the one that holds all logits, and against logistic regression by hand."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_jax.model.loss import mean_loss, reference_token_loss, token_loss
from tests import float32_bounds
from tests.float32_bounds import Bounded, assert_within
from tests.model.program_arrays import array_shapes

Inputs = tuple[jax.Array, jax.Array, jax.Array]


def _inputs(n_rows: int, n_ctx: int, d_model: int, vocab_size: int, seed: int = 0, dtype: str = "float32") -> Inputs:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(0, 2, (n_rows, n_ctx, d_model)), dtype)
    W_U = jnp.asarray(rng.normal(0, 1, (d_model, vocab_size)), dtype)
    return x, W_U, jnp.asarray(rng.integers(0, vocab_size, (n_rows, n_ctx)), jnp.int32)


def _numpy_token_loss(x: jax.Array, W_U: jax.Array, targets: jax.Array) -> np.ndarray:
    logits = np.asarray(x, np.float64) @ np.asarray(W_U, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, np.asarray(targets)[..., None], -1)[..., 0]


def test_the_reference_equals_numpy() -> None:
    inputs = _inputs(3, 7, 5, 11)
    np.testing.assert_allclose(reference_token_loss(*inputs), _numpy_token_loss(*inputs), rtol=1e-5, atol=1e-5)


class Losses(NamedTuple):
    """Of each token, the mean, the mean by position, and the gradients of 3 times the mean."""

    loss_BT: jax.Array
    mean: jax.Array
    by_position_T: jax.Array
    dx: jax.Array
    dW_U: jax.Array


@partial(jax.jit, static_argnums=3)
def _chunked(x: jax.Array, W_U: jax.Array, targets: jax.Array, chunk: int) -> tuple[Losses, Losses]:
    """Loss by chunks, as differentiation computes it and as a plain call does."""

    def loss(x: jax.Array, W_U: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, by_position = mean_loss(x, W_U, targets, chunk)
        return 3 * mean, by_position

    loss_BT = token_loss(x, W_U, targets, chunk)
    (weighted, by_position_T), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, W_U)
    return (
        Losses(loss_BT, weighted / 3, by_position_T, *grads),
        Losses(loss_BT, *mean_loss(x, W_U, targets, chunk), *grads),
    )


@jax.jit
def _reference(x: jax.Array, W_U: jax.Array, targets: jax.Array) -> Losses:
    loss_BT = reference_token_loss(x, W_U, targets)
    grads = jax.grad(lambda x, W_U: 3 * jnp.mean(reference_token_loss(x, W_U, targets)), (0, 1))(x, W_U)
    return Losses(loss_BT, jnp.mean(loss_BT), jnp.mean(loss_BT, axis=0), *grads)


def _exact(x: jax.Array, W_U: jax.Array, targets: jax.Array) -> list[Bounded]:
    """As `Losses`, with how far float32 may be from them."""
    exact = float32_bounds.mean_loss(x.reshape(-1, x.shape[-1]), W_U, targets.reshape(-1))
    loss_BT = Bounded(*(value.reshape(targets.shape) for value in exact["loss"]))
    by_position_T = float32_bounds.product("bt,b->t", loss_BT, np.full(len(targets), 1 / len(targets)))
    dx, dW_U = (Bounded(3 * exact[name].exact, 3 * exact[name].error) for name in ("dx", "dW_U"))
    return [loss_BT, exact["mean"], by_position_T, Bounded(dx.exact.reshape(x.shape), dx.error.reshape(x.shape)), dW_U]


@given(
    n_rows=st.integers(1, 5),
    n_ctx=st.integers(1, 13),
    vocab_size=st.integers(2, 37),
    chunk=st.integers(1, 80),
    seed=st.integers(0, 999),
)
# A chunk of one token, one that divides, one that does not, one that is more than all tokens; one token in all.
@example(n_rows=3, n_ctx=7, vocab_size=11, chunk=1, seed=1)
@example(n_rows=3, n_ctx=7, vocab_size=11, chunk=7, seed=2)
@example(n_rows=3, n_ctx=7, vocab_size=11, chunk=8, seed=3)
@example(n_rows=3, n_ctx=7, vocab_size=11, chunk=512, seed=4)
@example(n_rows=1, n_ctx=1, vocab_size=2, chunk=1, seed=5)
@settings(max_examples=3)
def test_chunked_equals_reference(n_rows: int, n_ctx: int, vocab_size: int, chunk: int, seed: int) -> None:
    inputs = _inputs(n_rows, n_ctx, 5, vocab_size, seed)
    expected = _exact(*inputs)
    for losses in (*_chunked(*inputs, chunk), _reference(*inputs)):
        for name, found, wanted in zip(Losses._fields, losses, expected, strict=True):
            assert_within(found, wanted, name)


def test_uniform_logits_cost_ln_v_and_their_gradient_is_known() -> None:
    x, _, targets = _inputs(3, 7, 5, 11)
    W_U = jnp.zeros((5, 11))
    mean, by_position = mean_loss(x, W_U, targets, 4)
    np.testing.assert_allclose(mean, np.log(11), rtol=1e-6)
    np.testing.assert_allclose(by_position, [np.log(11)] * 7, rtol=1e-6)
    dW_U = jax.grad(lambda W_U: mean_loss(x, W_U, targets, 4)[0])(W_U)
    residual = (1 / 11 - np.eye(11)[np.asarray(targets)]) / targets.size
    np.testing.assert_allclose(dW_U, np.einsum("btd,btv->dv", np.asarray(x), residual), rtol=1e-4, atol=1e-6)


def test_large_logits_do_not_overflow() -> None:
    x, W_U, targets = _inputs(3, 7, 5, 11)
    mean, _ = mean_loss(100 * x, W_U, targets, 4)
    grads = jax.grad(lambda x: mean_loss(x, W_U, targets, 4)[0])(100 * x)
    np.testing.assert_allclose(mean, reference_token_loss(100 * x, W_U, targets).mean(), rtol=1e-5)
    assert bool(jnp.isfinite(grads).all())


def test_bfloat16_inputs_give_a_float32_loss_and_gradients_of_their_own_type() -> None:
    x, W_U, targets = _inputs(3, 7, 5, 11)
    half = x.astype(jnp.bfloat16), W_U.astype(jnp.bfloat16)
    found, exact = _chunked(*half, targets, 4)[0], _reference(x, W_U, targets)
    assert found.mean.dtype == found.by_position_T.dtype == found.loss_BT.dtype == jnp.float32
    assert found.dx.dtype == found.dW_U.dtype == jnp.bfloat16
    # The loss is that of the rounded inputs: logits are not rounded again.
    rounded = _numpy_token_loss(*(value.astype(jnp.float32) for value in half), targets)
    np.testing.assert_allclose(found.loss_BT, rounded, rtol=1e-5, atol=1e-5)
    for grad, wanted in ((found.dx, exact.dx), (found.dW_U, exact.dW_U)):
        assert float(jnp.abs(grad.astype(jnp.float32) - wanted).max() / jnp.abs(wanted).max()) < 0.03


@pytest.mark.parametrize("chunk", [5, 8])
def test_all_logits_never_exist_at_once(chunk: int) -> None:
    """At most one chunk of logits, in the value and in its gradient; the reference, by contrast, holds all."""
    n_rows, n_ctx, d_model, vocab_size = 3, 7, 5, 101
    x, W_U, targets = _inputs(n_rows, n_ctx, d_model, vocab_size)

    def largest(shapes: set[tuple[int, ...]]) -> int:
        return max(int(np.prod(shape)) for shape in shapes)

    assert (n_rows, n_ctx, vocab_size) in array_shapes(reference_token_loss, x, W_U, targets)
    value = array_shapes(lambda x, W_U: mean_loss(x, W_U, targets, chunk), x, W_U)
    grad = array_shapes(jax.grad(lambda x, W_U: mean_loss(x, W_U, targets, chunk)[0], (0, 1)), x, W_U)
    for shapes in (value, grad):
        assert (chunk, vocab_size) in shapes
        assert largest(shapes) == chunk * vocab_size
