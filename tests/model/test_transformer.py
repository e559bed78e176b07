"""The Flax module: the same numbers as the functions, and whatever JAX and Flax do with a module."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import icl_jax
from icl_jax.config import ModelConfig, UserError
from icl_jax.model.forward import forward
from icl_jax.model.loss import losses
from icl_jax.model.params import declarations, init_params
from tests.analysis.small_runs import random_run
from tests.model.random_params import random_params, random_tokens

T, V = 11, 29
MODEL = ModelConfig(n_layers=2, d_model=20, n_heads=5, d_mlp=17, n_ctx=T, vocab_size=V, smeared_keys=True)


@pytest.fixture
def model() -> icl_jax.Transformer:
    return icl_jax.Transformer(MODEL, rngs=nnx.Rngs(0))


def test_logits_losses_and_taps_are_those_of_the_functions(model: icl_jax.Transformer) -> None:
    rows = random_tokens(MODEL, 3, T + 1)
    np.testing.assert_array_equal(model(rows[:, :-1]), forward(model.params, rows[:, :-1], MODEL))
    np.testing.assert_array_equal(model.loss(rows), losses(model.params, rows, MODEL))
    log_probs = jax.nn.log_softmax(model(rows[:, :-1]))
    expected = -jnp.take_along_axis(log_probs, rows[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(model.loss(rows), expected, rtol=1e-5, atol=1e-6)
    seen = []

    def tap(name: str, layer: int, value: jax.Array) -> jax.Array:
        seen.append((name, layer))
        return 0 * value if name == "resid_post" else value

    np.testing.assert_allclose(model(rows[:, :-1], tap=tap), 0, atol=1e-6)
    assert ("pattern", 1) in seen


def test_it_starts_as_training_does() -> None:
    model, expected = icl_jax.Transformer(MODEL, rngs=nnx.Rngs(params=5)), init_params(MODEL, seed=5)
    assert model.params.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(model.params[name], value, rtol=1e-6, atol=1e-9)


def test_parameters_carry_their_declaration(model: icl_jax.Transformer) -> None:
    for name, declared in declarations(MODEL).items():
        metadata = getattr(model, name).get_metadata()
        assert (metadata["axes"], metadata["decayed"]) == (declared.axes, declared.decayed)
    assert declarations(MODEL)["W_O"].axes == "N H E D"


def test_it_shows_itself_splits_and_merges(model: icl_jax.Transformer) -> None:
    tokens = random_tokens(MODEL, 2, T)
    text = nnx.tabulate(model, tokens)
    n = sum(value.size for value in jax.tree.leaves(model.params))
    assert "axes: N H D E" in text
    assert f"{n:,}" in text
    graph, state = nnx.split(model)
    np.testing.assert_array_equal(nnx.merge(graph, state)(tokens), model(tokens))


def test_it_trains_in_a_loop_of_flax_and_optax(model: icl_jax.Transformer) -> None:
    rows = random_tokens(MODEL, 4, T + 1)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model: icl_jax.Transformer, optimizer: Any) -> jax.Array:
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean(model.loss(rows)))(model)
        optimizer.update(model, grads)
        return loss

    with jax.numpy_dtype_promotion("standard"):  # optax's
        curve = [float(step(model, optimizer)) for _ in range(20)]
    assert curve[0] == pytest.approx(np.log(V), abs=0.3)
    assert curve[-1] < curve[0] - 1


@pytest.mark.parametrize(
    ("n_layers", "fields"),
    [
        *itertools.product((0, 1), ({}, {"tied_unembedding": True, "positions": "standard"})),
        (2, {"d_mlp": 17, "smeared_keys": True, "norm": "layernorm", "position_embedding": "learned"}),
        (2, {"d_mlp": 17, "positions": "rotary", "norm": "none", "attention": "reference"}),
        (9, {"d_mlp": 17, "attention": "splash"}),
    ],
)
def test_derivatives_of_both_modes_and_their_product(n_layers: int, fields: dict[str, Any]) -> None:
    """A directional derivative by either mode, and a Hessian-vector product, which is symmetric."""
    config = ModelConfig(n_layers=n_layers, d_model=20, n_heads=5, n_ctx=T, vocab_size=V, **fields)
    rows = random_tokens(config, 2, T + 1)
    params, one, other = (random_params(config, seed) for seed in (0, 1, 2))

    def loss(params: Any) -> jax.Array:
        return jnp.mean(losses(params, rows, config))

    def dot(a: Any, b: Any) -> jax.Array:
        return sum((jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.zeros(()))

    @jax.jit
    def both(one: Any, other: Any) -> Any:
        forward_mode = jax.jvp(loss, (params,), (one,))[1]
        product = jax.jvp(jax.grad(loss), (params,), (one,))[1]
        logits = jax.jvp(lambda params: forward(params, rows[:, :-1], config), (params,), (one,))[1]
        return forward_mode, dot(jax.grad(loss)(params), one), dot(product, other), logits

    forward_mode, reverse_mode, product, logits = both(one, other)
    swapped = both(other, one)[2]
    np.testing.assert_allclose(forward_mode, reverse_mode, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(product, swapped, rtol=1e-2, atol=1e-3)
    assert bool(jnp.isfinite(logits).all())
    assert float(jnp.abs(logits).max()) > 0.1
    assert abs(float(product)) > 1e-4


def test_a_snapshot_from_a_path_a_run_and_what_open_run_gives(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", dataclasses.replace(MODEL, d_mlp=0), (0, 3))
    tokens = random_tokens(MODEL, 2, T)
    for source in (run, str(run.path), Path(run.path), icl_jax.open_run(str(run.path))):
        for step, seed in ((0, 0), (3, 1), (None, 1)):
            model = icl_jax.Transformer.from_run(source, step)
            expected = forward(random_params(run.config.model, seed), tokens, run.config.model)
            np.testing.assert_allclose(model(tokens), expected, atol=1e-6)
    with pytest.raises(UserError, match="no snapshot of step 1"):
        icl_jax.Transformer.from_run(run, 1)
    with pytest.raises(UserError, match="no such run directory"):
        icl_jax.Transformer.from_run(tmp_path / "nowhere")


def test_importing_the_package_imports_neither_jax_nor_flax() -> None:
    program = "import sys, icl_jax; assert not {'jax', 'flax', 'xarray', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
