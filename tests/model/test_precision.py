"""Products of float32 are exact on every platform, whoever asks: read off the programs, which are all platforms'."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import icl_jax
from icl_jax.config import ModelConfig, TrainConfig
from icl_jax.model.execution import resolve
from icl_jax.model.forward import final_resid, forward, run_with_cache
from icl_jax.model.loss import losses
from tests.analysis.small_runs import random_run
from tests.model.program_arrays import equations
from tests.model.random_params import random_params, random_tokens

MODEL = ModelConfig(n_layers=2, d_model=20, n_heads=5, d_mlp=17, n_ctx=128, vocab_size=29, smeared_keys=True)
EXACT = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def _precisions(function: Callable[..., Any], *args: Any) -> set[Any]:
    found = [eqn for eqn in equations(function, *args) if eqn.primitive.name == "dot_general"]
    assert found
    return {eqn.params["precision"] for eqn in found}


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_every_product_of_a_forward_pass_and_of_its_gradients_is_exact(platform: str) -> None:
    params, rows = random_params(MODEL), random_tokens(MODEL, 2, 129)
    plain, trained = resolve(MODEL, platform), resolve(MODEL, platform, TrainConfig())

    def loss(params: Any) -> jax.Array:
        return jnp.mean(losses(params, rows, MODEL, execution=plain))

    def resid(params: Any) -> jax.Array:
        return jnp.sum(final_resid(params, rows[:, :-1], MODEL, execution=trained))

    for function in (loss, jax.grad(loss), resid, jax.grad(resid)):
        assert _precisions(function, params) == {EXACT}
    assert _precisions(lambda params: forward(params, rows[:, :-1], MODEL), params) == {EXACT}
    assert _precisions(lambda params: run_with_cache(params, rows[:, :-1], MODEL), params) == {EXACT}
    assert _precisions(lambda params: jax.jvp(loss, (params,), (params,)), params) == {EXACT}


_PROGRAM = """
import sys
from icl_jax.analysis import analyze
from icl_jax.rundir import RunDir
import icl_jax
analyze(RunDir.open(sys.argv[1]))
icl_jax.open_run(sys.argv[1]).probe("1 2 3 1 2 3 1")
"""


def test_every_product_of_every_measurement_is_exact(tmp_path: Path) -> None:
    """From Python, where no command line has set JAX up: the text of every program that was compiled."""
    model = ModelConfig(n_layers=2, d_model=12, n_heads=3, d_mlp=10, n_ctx=33, vocab_size=23)
    run = random_run(tmp_path / "run", model, (0, 3))
    env = {**os.environ, "JAX_DUMP_IR_TO": str(tmp_path / "programs"), "JAX_PLATFORMS": "cpu"}
    program = [sys.executable, "-c", _PROGRAM, str(run.path)]
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    texts = [path.read_text() for path in (tmp_path / "programs").iterdir()]
    products = [line for text in texts for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 50
    assert not [line for line in products if "xf32>" in line and not re.search(r"HIGHEST, HIGHEST", line)]


def test_it_is_the_factors_type_that_counts() -> None:
    half = ModelConfig(n_layers=1, d_model=20, n_heads=5, n_ctx=16, vocab_size=29, compute_dtype="bfloat16")
    params, tokens = random_params(half), random_tokens(half, 2, 16)
    assert _precisions(lambda params: forward(params, tokens, half), params) == {None}


def test_a_module_of_our_own_is_no_exception() -> None:
    model = icl_jax.Transformer.from_params(random_params(MODEL), MODEL)
    assert _precisions(model, random_tokens(MODEL, 2, 9)) == {EXACT}
