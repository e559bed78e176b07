"""Models with any option train: gradients of the fast step are those of the plain forward pass, on one device or more,
and a run that is stopped goes on as if it had not been."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import Config, ModelConfig
from icl_jax.model.execution import resolve
from icl_jax.model.forward import forward
from icl_jax.model.loss import reference_token_loss
from icl_jax.model.params import declarations
from icl_jax.train.optimizer import init_opt_state
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.step import Axes, TrainState, loss_and_grads
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.random_params import random_params, random_tokens
from tests.train.runs import assert_same_run, tiny_config, train_here

V, T, B = 29, 17, 4
# Those that meet in no family: the others are parts of these.
STEPPED = FAMILIES | {
    name: OPTIONS[name]
    for name in ("gated", "soft caps", "one key head", "norms on both sides", "key offset", "smear gate")
}


def _config(name: str, **train: Any) -> Config:
    sizes = {"n_layers": 2, "d_model": 20, "n_heads": 5, "n_ctx": T, "vocab_size": V, "smeared_keys": False}
    return tiny_config(model=sizes | STEPPED[name], train={"batch_size": B, **train})


@pytest.mark.parametrize("name", STEPPED)
def test_the_steps_gradients_are_those_of_the_plain_forward_pass(name: str) -> None:
    """In micro-batches and chunks of the unembedding; every parameter has a gradient."""
    config = _config(name)
    config = replace(config, model=replace(config.model, loss_chunk=7))
    params, rows = random_params(config.model), random_tokens(config.model, B, T + 1)
    execution = replace(resolve(config.model, "cpu", config.train), n_micro_batches=2)
    assert execution.own_gradients
    step = partial(loss_and_grads, config=config, axes=Axes((), {}), execution=execution)
    loss_T, grads = jax.jit(step)(params, rows)

    def reference(params: Any) -> tuple[jax.Array, jax.Array]:
        plain: ModelConfig = replace(config.model, attention="reference")
        loss_BT = reference_token_loss(forward(params, rows[:, :-1], plain), jnp.eye(V), rows[:, 1:])
        return jnp.mean(loss_BT), jnp.mean(loss_BT, axis=0)

    expected, expected_loss_T = jax.jit(jax.grad(reference, has_aux=True))(params)
    np.testing.assert_allclose(loss_T, expected_loss_T, atol=1e-5)
    for parameter, grad in expected.items():
        np.testing.assert_allclose(grads[parameter], grad, rtol=1e-3, atol=2e-6, err_msg=parameter)
        # A bias of keys changes no pattern where keys are not turned, so its gradient is rounding.
        assert np.abs(grad).max() > 1e-6 or parameter == "b_K", parameter


def test_a_step_over_devices_that_share_parameters_is_that_of_one() -> None:
    """Biases and norms are whole everywhere; weights with a layer axis are gathered one layer at a time."""
    after = []
    for n_devices, train in ((1, {}), (2, {"parallel": "mesh", "fsdp": 2})):
        config = _config("Gemma 2", **train)
        config = replace(config, model=replace(config.model, biases=("b_Q", "b_V", "b_in", "b_U"), smear_gate=True))
        config = replace(config, optimizer=replace(config.optimizer, eps=1e-2))
        parallel = ParallelStep(config, jax.devices()[:n_devices])
        params = random_params(config.model)
        state = parallel.put_state(TrainState(jnp.int32(3), params, init_opt_state(config, params)))
        rows = np.asarray(random_tokens(config.model, B, T + 1))
        after.append(parallel.to_host(parallel.step(state, parallel.put_rows(rows))))
    for (path, one), two in zip(jax.tree_util.tree_leaves_with_path(after[0]), jax.tree.leaves(after[1]), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6, err_msg=jax.tree_util.keystr(path))


def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    config = _config("Llama", n_steps=4)
    config = replace(config, model=replace(config.model, biases=("b_Q", "b_U"), qk_norm="head", norm_position="both"))
    config = replace(config, model=replace(config.model, key_offset=2, smear_gate=True))
    train_here(config, tmp_path / "unbroken")
    assert train_here(config, tmp_path / "run", stop_at=2).step == 2
    train_here(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


@pytest.mark.parametrize("name", OPTIONS)
def test_vectors_are_not_decayed_and_matrices_are(name: str) -> None:
    model = ModelConfig(**{"n_layers": 2, "d_model": 20, "n_heads": 5, **OPTIONS[name]})
    for parameter, declared in declarations(model).items():
        assert declared.decayed == declared.sharded == parameter.startswith("W_"), parameter
