"""What is no row of token ids is refused in every function that takes some: JAX would clamp it without a word."""

import importlib
import inspect
import os
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl_jax
from icl_jax.config import ModelConfig
from icl_jax.measures.map_snapshots import map_snapshots
from icl_jax.model.forward import forward
from icl_jax.model.transformer import Transformer
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=7, vocab_size=11)


def _functions() -> dict[str, Callable[..., Any]]:
    """Every public function of (params, tokens or rows, config) of the package."""
    found = {}
    for module in pkgutil.walk_packages(icl_jax.__path__, "icl_jax."):
        if module.name.partition(".")[2].split(".")[0] in ("model", "maths", "measures", "train"):
            for name, function in vars(importlib.import_module(module.name)).items():
                is_own = inspect.isfunction(function) and function.__module__ == module.name
                if is_own and not name.startswith("_"):
                    parameters = inspect.signature(function).parameters
                    if {"params", "config"} <= set(parameters) and {"tokens", "rows"} & set(parameters):
                        found[f"{module.name}.{name}"] = function
    return found


FUNCTIONS = _functions()
PARAMS = random_params(MODEL)
GOOD = np.arange(7, dtype=np.int32)[None].repeat(2, axis=0)
BAD = {
    "an id beyond the vocabulary": (np.where(GOOD == 3, 11, GOOD), "holds ids from 0 to 11: must be from 0 to 10"),
    "a negative id": (np.where(GOOD == 3, -1, GOOD), "holds ids from -1 to 6: must be from 0 to 10"),
    "one row without its axis": (GOOD[0], r"has the shape \(7,\): must be rows .*; one row is (tokens|rows)\[None\]"),
    "rows beyond n_ctx": (np.zeros((2, 9), np.int32), r"has the shape \(2, 9\): must be rows of .* model.n_ctx = 7"),
    "no rows": (GOOD[:0], r"has the shape \(0, 7\): must be rows"),
    "rows of nothing": (GOOD[:, :0], r"has the shape \(2, 0\): must be rows"),
    "no whole numbers": (GOOD.astype(np.float32), "is of type float32: must be whole numbers"),
}


def test_they_are_all_there() -> None:
    assert len(FUNCTIONS) >= 17
    names = {name.rpartition(".")[2] for name in FUNCTIONS}
    assert {"forward", "run_with_cache", "losses", "ablate", "direct_logit_attribution", "literal_copying"} <= names


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.endswith("loss_and_grads")])
def test_what_are_no_ids_are_refused(name: str, kind: str) -> None:
    tokens, said = BAD[kind]
    parameters = inspect.signature(FUNCTIONS[name]).parameters
    given = {"params": PARAMS, "config": MODEL, "tokens" if "tokens" in parameters else "rows": jnp.asarray(tokens)}
    # What else it takes is not looked at before.
    more = {p.name: jnp.asarray(tokens) for p in parameters.values() if p.default is p.empty and p.name not in given}
    with pytest.raises(ValueError, match=said):
        FUNCTIONS[name](**given, **more)


def test_the_module_refuses_too() -> None:
    model = Transformer.from_params(PARAMS, MODEL)
    with pytest.raises(ValueError, match="tokens holds ids from 0 to 11"):
        model(jnp.asarray(BAD["an id beyond the vocabulary"][0]))
    with pytest.raises(ValueError, match="rows holds ids from 0 to 11"):
        model.loss(jnp.asarray(BAD["an id beyond the vocabulary"][0]))


def test_under_jit_shapes_are_refused_and_values_not_waited_for() -> None:
    run = jax.jit(lambda tokens: forward(PARAMS, tokens, MODEL))
    with pytest.raises(ValueError, match=r"has the shape \(2, 9\)"):
        run(jnp.zeros((2, 9), jnp.int32))
    assert run(jnp.asarray(GOOD)).shape == (2, 7, 11)


def test_a_process_that_was_forked_after_jax_began_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of waiting for ever for threads that it does not have."""
    forward(PARAMS, jnp.asarray(GOOD), MODEL)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for call in (
        lambda: forward(PARAMS, jnp.asarray(GOOD), MODEL),
        lambda: map_snapshots(lambda params, config: {}, {"W_E": np.zeros((1, 2))}, config=MODEL),
    ):
        with pytest.raises(RuntimeError, match=r"forked after JAX had begun .*get_context\(\"spawn\"\)"):
            call()
