"""Names, shapes and initial values of the parameters."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.model.params import init_params, layer_names, n_params, param_shapes, run_once

N, D, H, M, T, V = 2, 15, 3, 7, 11, 29
E = D // H
ATTENTION = {"W_Q": (N, H, D, E), "W_K": (N, H, D, E), "W_V": (N, H, D, E), "W_O": (N, H, E, D)}


def _config(**fields: Any) -> ModelConfig:
    sizes = {"n_layers": N, "d_model": D, "n_heads": H, "n_ctx": T, "vocab_size": V, "position_embedding": "learned"}
    return ModelConfig(**{**sizes, "norm": "none", **fields})


@pytest.mark.parametrize(
    ("fields", "extra"),
    [
        ({}, {"W_pos": (T, D), "W_U": (D, V)}),
        ({"tied_unembedding": True}, {"W_pos": (T, D)}),
        ({"positions": "standard"}, {"W_pos": (T, D), "W_U": (D, V)}),
        ({"d_mlp": M}, {"W_pos": (T, D), "W_in": (N, D, M), "W_out": (N, M, D), "W_U": (D, V)}),
        ({"norm": "rmsnorm"}, {"W_pos": (T, D), "ln1_w": (N, D), "ln_final_w": (D,), "W_U": (D, V)}),
        (
            {"norm": "layernorm", "d_mlp": M, "smeared_keys": True, "tied_unembedding": True},
            {
                "W_pos": (T, D), "smear_alpha": (N, H), "W_in": (N, D, M), "W_out": (N, M, D), "ln1_w": (N, D),
                "ln2_w": (N, D), "ln_final_w": (D,),
            },
        ),
    ],
)  # fmt: skip
def test_names_and_shapes(fields: dict[str, Any], extra: dict[str, tuple[int, ...]]) -> None:
    config = _config(**fields)
    expected = {"W_E": (V, D)} | ATTENTION | extra
    assert param_shapes(config) == expected
    params = jax.eval_shape(lambda: init_params(config, seed=0))
    assert {name: value.shape for name, value in params.items()} == expected
    assert all(value.dtype == jnp.float32 for value in params.values())
    assert set(layer_names(config)) == {name for name, shape in expected.items() if shape[0] == N}


@pytest.mark.parametrize("norm", ["none", "layernorm"])
def test_a_model_without_layers_has_no_arrays_of_size_zero(norm: Any) -> None:
    config = _config(n_layers=0, norm=norm, smeared_keys=True, d_mlp=M)
    params = jax.eval_shape(lambda: init_params(config, seed=0))
    shapes = {name: value.shape for name, value in params.items()}
    final = {} if norm == "none" else {"ln_final_w": (D,)}
    assert shapes == {"W_E": (V, D), "W_pos": (T, D), "W_U": (D, V)} | final
    assert layer_names(config) == ()


def test_computed_positions_have_no_parameters() -> None:
    for positions in ("shortformer", "standard"):
        sinusoidal = _config(d_model=18, positions=positions, position_embedding="sinusoidal")
        assert "W_pos" not in param_shapes(sinusoidal)
    assert "W_pos" not in param_shapes(_config(d_model=18, positions="rotary", position_embedding="learned"))


def test_n_params_counts_the_numbers() -> None:
    for norm, d_mlp, smeared, tied in itertools.product(("none", "rmsnorm"), (0, M), (False, True), (False, True)):
        config = _config(norm=norm, d_mlp=d_mlp, smeared_keys=smeared, tied_unembedding=tied)
        assert n_params(config) == sum(int(np.prod(shape)) for shape in param_shapes(config).values())
    assert n_params(_config()) == V * D + T * D + 4 * N * H * D * E + D * V


def test_initial_values() -> None:
    config = ModelConfig(
        n_layers=2, d_model=60, n_heads=3, d_mlp=70, n_ctx=50, vocab_size=97, position_embedding="learned",
        smeared_keys=True, init_std=0.07,
    )  # fmt: skip
    params = init_params(config, seed=3)
    for name, value in params.items():
        if name == "smear_alpha":
            np.testing.assert_array_equal(value, 0)
        elif name.startswith("ln"):
            np.testing.assert_array_equal(value, 1)
        else:
            n = value.size
            assert float(value.std()) == pytest.approx(0.07, rel=4 / np.sqrt(2 * n)), name
            assert abs(float(value.mean())) < 4 * 0.07 / np.sqrt(n), name
            kurtosis = float(jnp.mean((value / value.std()) ** 4))
            assert kurtosis == pytest.approx(3, abs=5 * np.sqrt(24 / n)), name  # normal, neither uniform nor truncated
    # No two parameters are made of the same numbers, nor any two layers.
    flat = np.concatenate([np.asarray(v).reshape(-1) for n, v in params.items() if n.startswith("W_")])
    assert len(np.unique(flat)) > 0.99 * len(flat)


def test_initial_values_are_a_function_of_the_seed() -> None:
    config = _config(n_layers=0, norm="rmsnorm")
    a, again, other = (init_params(config, seed) for seed in (1, 1, 2))
    assert set(a) == {"W_E", "W_pos", "ln_final_w", "W_U"}
    for name in a:
        np.testing.assert_array_equal(a[name], again[name])
        if name.startswith("W_"):
            assert float(jnp.abs(a[name] - other[name]).max()) > 0.01


def test_what_runs_once_has_the_bits_of_what_runs_often() -> None:
    def sample() -> jax.Array:
        return 0.02 * jax.random.normal(jax.random.key(3), (V, D))

    # As outside of the tests, which are compiled without optimisation.
    often = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    expected = often(sample)()
    np.testing.assert_array_equal(run_once(sample), expected)
    np.testing.assert_array_equal(often(lambda: run_once(sample))(), expected)


LAST_ENTRIES = {
    "W_E": -0.014258818,
    "W_K": -0.0029407002,
    "W_O": 0.012799794,
    "W_Q": 0.058537945,
    "W_U": 0.019186893,
    "W_V": 0.0080718892,
    "W_in": 0.0068068118,
    "W_out": 0.018253321,
    "W_pos": 0.0043954812,
}


def test_initial_values_are_those_of_every_version() -> None:
    """Runs of one seed begin alike, whatever is declared later: the order of the draws is part of the record."""
    params = init_params(_config(d_mlp=M, norm="rmsnorm", smeared_keys=True), seed=3)
    found = {name: float(value.reshape(-1)[-1]) for name, value in params.items() if name.startswith("W_")}
    assert found == pytest.approx(LAST_ENTRIES, rel=1e-5)
