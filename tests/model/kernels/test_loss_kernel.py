"""The kernel for NVIDIA GPUs, interpreted on a CPU, against the form that XLA compiles."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_jax.model.kernels import loss_kernel
from icl_jax.model.loss import mean_loss, reference_token_loss
from tests import float32_bounds
from tests.float32_bounds import assert_within
from tests.model.program_arrays import equations


@given(n_tokens=st.integers(1, 4), vocab_size=st.integers(2, 70), seed=st.integers(0, 999))
# One block or several, whole or not; one token.
@example(n_tokens=3, vocab_size=16, seed=1)
@example(n_tokens=3, vocab_size=64, seed=2)
@example(n_tokens=3, vocab_size=61, seed=3)
@example(n_tokens=1, vocab_size=2, seed=4)
@settings(max_examples=3)
def test_loss_and_gradient_equal_the_reference(n_tokens: int, vocab_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(0, 5, (n_tokens, vocab_size)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, vocab_size, n_tokens), jnp.int32)
    weight = jnp.asarray(rng.uniform(0, 1, n_tokens), jnp.float32)
    found = loss_kernel.loss_and_dlogits(logits, targets, weight, jnp.float32, block=16, interpret=True)
    for value, wanted in zip(found, float32_bounds.loss_and_dlogits(logits, np.asarray(targets), weight), strict=True):
        assert_within(value, wanted)


def test_several_models_at_a_time() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(0, 5, (3, 4, 20)), jnp.float32)
    targets, weight = jnp.asarray(rng.integers(0, 20, 4), jnp.int32), jnp.full(4, 0.25)
    kernel = partial(loss_kernel.loss_and_dlogits, dtype=jnp.float32, interpret=True)
    found = jax.vmap(kernel, in_axes=(0, None, None))(logits, targets, weight)
    for k in range(3):
        for value, wanted in zip(found, kernel(logits[k], targets, weight), strict=True):
            np.testing.assert_array_equal(value[k], wanted)


def test_a_token_that_is_not_there_has_no_gradient() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 5, (2, 40)), jnp.float32)
    weight = jnp.array([0.5, 0.0])
    _, dlogits = loss_kernel.loss_and_dlogits(logits, jnp.array([3, -1]), weight, jnp.bfloat16, interpret=True)
    assert dlogits.dtype == jnp.bfloat16
    assert bool((dlogits[0] != 0).all())
    assert bool((dlogits[1] == 0).all())


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_logits_that_are_not_finite_give_a_loss_that_is_not(bad: float) -> None:
    logits = jnp.zeros((2, 40)).at[0, 37].set(bad)
    targets, weight = jnp.array([3, 3]), jnp.ones(2)
    found, _ = loss_kernel.loss_and_dlogits(logits, targets, weight, jnp.float32, block=16, interpret=True)
    assert np.isfinite(found).tolist() == [False, True]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def platform_dependent(*args: Any, default: Any, cuda: Any = None, **_others: Any) -> Any:
        return (cuda or default)(*args)

    kernel = partial(loss_kernel.loss_and_dlogits, block=8, interpret=True)
    monkeypatch.setattr(loss_kernel, "loss_and_dlogits", kernel)
    monkeypatch.setattr(jax.lax, "platform_dependent", platform_dependent)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("chunk", [5, 21])
def test_the_mean_loss_by_the_kernel_equals_the_reference(chunk: int) -> None:
    rng = np.random.default_rng(0)
    x, W_U = jnp.asarray(rng.normal(0, 2, (3, 7, 5)), jnp.float32), jnp.asarray(rng.normal(0, 1, (5, 30)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 30, (3, 7)), jnp.int32)
    (mean, by_position_T), grads = jax.value_and_grad(mean_loss, (0, 1), has_aux=True)(x, W_U, targets, chunk)
    np.testing.assert_allclose(by_position_T, reference_token_loss(x, W_U, targets).mean(axis=0), rtol=1e-5)
    expected = float32_bounds.mean_loss(x.reshape(-1, 5), W_U, targets.reshape(-1))
    assert_within(mean, expected["mean"])
    assert_within(grads[0].reshape(-1, 5), expected["dx"])
    assert_within(grads[1], expected["dW_U"])


def test_training_takes_the_kernel_on_a_gpu_and_only_there() -> None:
    x, W_U, targets = jnp.ones((3, 7, 5)), jnp.ones((5, 30)), jnp.zeros((3, 7), jnp.int32)
    by_platform = {
        eqn.params["branches_platforms"]: ["pallas_call" in str(branch) for branch in eqn.params["branches"]]
        for eqn in equations(jax.grad(lambda x: mean_loss(x, W_U, targets, 8)[0]), x)
        if eqn.params.get("branches_platforms")
    }
    assert by_platform[("cuda",), None] == [True, False]
