"""One step against AdamW written out in NumPy, and what accumulation, precision and jit must not change."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_jax.config import Config, ModelConfig, OptimizerConfig, TrainConfig
from icl_jax.model.execution import n_micro_batches, resolve
from icl_jax.model.forward import forward
from icl_jax.model.loss import reference_token_loss
from icl_jax.model.params import Parameters, Params, declarations, init_params, layer_names
from icl_jax.train import step as step_module
from icl_jax.train.optimizer import init_opt_state, learning_rate_fn, optimizer
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.step import Axes, StepMetrics, TrainState, loss_and_grads, train_step
from tests.data_configs import data_config
from tests.model.random_params import random_params

B, T, V = 6, 7, 29
MODEL = ModelConfig(
    n_layers=1, d_model=15, n_heads=3, d_mlp=17, n_ctx=T, vocab_size=V, position_embedding="learned",
    smeared_keys=True, attention="reference", loss_chunk=10,
)  # fmt: skip
OPTIMIZER = OptimizerConfig(
    lr=0.02, warmup_steps=2, schedule="constant", b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, clip_norm=0.5
)


def _config(*, accum_steps: int = 1, model: ModelConfig = MODEL, n_steps: int = 11, **optimizer: Any) -> Config:
    return Config(
        model=model,
        train=TrainConfig(n_steps=n_steps, batch_size=B, accum_steps=accum_steps),
        optimizer=dataclasses.replace(OPTIMIZER, **optimizer),
        data=data_config(phrase_len=3),
    )


def _rows(step: int) -> np.ndarray:
    return np.random.default_rng(100 + step).integers(0, V, (B, T + 1), dtype=np.int32)


def _step_fn(config: Config) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """The step of one device; a mapped axis of size 1 stands for all devices."""
    execution = resolve(config.model, "cpu", config.train)
    step = partial(train_step, config=config, axes=Axes(("devices",), {}), execution=execution)
    mapped = jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name="devices", axis_size=1)
    return jax.jit(lambda state, rows: mapped(state, rows[None]))


def _start(config: Config) -> TrainState:
    params = random_params(config.model)
    return TrainState(jnp.int32(0), params, init_opt_state(config, params))


@jax.jit
def _reference_grads(params: Params, rows: jax.Array) -> tuple[jax.Array, Params]:
    def loss_fn(params: Params) -> tuple[jax.Array, jax.Array]:
        eye = jnp.eye(V)
        loss_BT = reference_token_loss(forward(params, rows[:, :-1], MODEL), eye, rows[:, 1:])
        return jnp.mean(loss_BT), jnp.mean(loss_BT, axis=0)

    return jax.grad(loss_fn, has_aux=True)(params)[::-1]


class NumpyAdamW:
    """AdamW as in Loshchilov and Hutter 2019, float64."""

    def __init__(self, params: Params, config: OptimizerConfig) -> None:
        self.params = {name: np.asarray(value, np.float64) for name, value in params.items()}
        self.mu = {name: np.zeros(value.shape) for name, value in params.items()}
        self.nu = {name: np.zeros(value.shape) for name, value in params.items()}
        self.config = config

    def update(self, grads: Params, step: int, lr: float) -> float:
        c = self.config
        g = {name: np.asarray(value, np.float64) for name, value in grads.items()}
        norm = math.sqrt(sum((value**2).sum() for value in g.values()))
        clip = c.clip_norm / norm if c.clip_norm and norm > c.clip_norm else 1.0
        decay = c.weight_decay
        if 0 <= c.decay_change_step <= step:
            decay *= c.decay_change_factor
        for name in g:
            self.mu[name] = c.b1 * self.mu[name] + (1 - c.b1) * clip * g[name]
            self.nu[name] = c.b2 * self.nu[name] + (1 - c.b2) * (clip * g[name]) ** 2
            mu = self.mu[name] / (1 - c.b1 ** (step + 1))
            nu = self.nu[name] / (1 - c.b2 ** (step + 1))
            is_vector = name in ("ln1_w", "ln2_w", "ln_final_w", "smear_alpha")
            direction = mu / (np.sqrt(nu) + c.eps) + (0 if is_vector else decay) * self.params[name]
            self.params[name] = self.params[name] - lr * direction
        return norm


@pytest.mark.parametrize(
    "optimizer",
    [
        {},
        {"clip_norm": 0.0, "decay_change_step": 2, "decay_change_factor": 0.1},
        {"clip_norm": 1e6, "decay_change_step": 0, "decay_change_factor": 5.0},
    ],
    ids=["clipped", "not clipped, decay falls at step 2", "clipped too high to matter, decay changed from the start"],
)
def test_steps_equal_numpy_adamw(optimizer: dict[str, Any]) -> None:
    """Four steps, so that moments, their bias, the end of warm-up and a change of decay all count."""
    config = _config(**optimizer)
    step_fn, state = _step_fn(config), _start(config)
    expected = NumpyAdamW(state.params, config.optimizer)
    for step in range(4):
        rows = _rows(step)
        loss_T, grads = _reference_grads(state.params, rows)
        lr = 0.01 if step == 0 else 0.02
        norm = expected.update(grads, step, lr)
        assert norm > config.optimizer.clip_norm or config.optimizer.clip_norm == 1e6
        state, metrics = step_fn(state, rows)
        assert int(state.step) == step + 1
        np.testing.assert_allclose(metrics.loss_T, loss_T, atol=1e-5)
        assert float(metrics.grad_norm) == pytest.approx(norm, rel=1e-5)
        assert float(metrics.lr) == pytest.approx(lr, rel=1e-6)
        for name, value in state.params.items():
            np.testing.assert_allclose(value, expected.params[name], atol=2e-5, err_msg=f"{name} after step {step}")


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """Five turns of the quintic of Jordan 2024, from the matrix over its Frobenius norm."""
    x = matrix / (np.linalg.norm(matrix) + 1e-6)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def _muon_update(name: str, moment: np.ndarray) -> np.ndarray:
    """Each layer's heads as one matrix between the residual stream and all else, 0.2 sqrt(longer side) its scale."""
    found = np.empty_like(moment)
    for layer, each in enumerate(moment):
        heads = each.transpose(1, 0, 2) if name in ("W_Q", "W_K", "W_V") else each  # D first, or D last
        matrix = heads.reshape(15, -1) if heads.shape[0] == 15 else heads.reshape(-1, 15)
        made = _orthogonal(matrix) * 0.2 * math.sqrt(max(matrix.shape))
        made = made.reshape(heads.shape)
        found[layer] = made.transpose(1, 0, 2) if name in ("W_Q", "W_K", "W_V") else made
    return found


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_steps_equal_other_optimizers_in_numpy(name: Any) -> None:
    """Momentum of past gradients, and decay that no momentum has: optax's own formulas, in float64."""
    config = _config(name=name, clip_norm=0.0, decay_change_step=2, decay_change_factor=0.1)
    c = config.optimizer
    step_fn, state = _step_fn(config), _start(config)
    params = {key: np.asarray(value, np.float64) for key, value in state.params.items()}
    mu, nu = ({key: np.zeros(value.shape) for key, value in params.items()} for _ in range(2))
    in_layers = {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"}
    for step in range(3):
        rows = _rows(step)
        _, grads = _reference_grads(state.params, rows)
        lr, decay = (0.01 if step == 0 else 0.02), c.weight_decay * (0.1 if step >= 2 else 1)
        for key, value in grads.items():
            g = np.asarray(value, np.float64)
            if name == "sgd":
                mu[key] = g + c.b1 * mu[key]
                update = mu[key]
            else:
                mu[key] = c.b1 * mu[key] + (1 - c.b1) * g
                nu[key] = c.b2 * nu[key] + (1 - c.b2) * g**2
                ahead = c.b1 * mu[key] / (1 - c.b1 ** (step + 2)) + (1 - c.b1) * g / (1 - c.b1 ** (step + 1))
                root = np.sqrt(nu[key] / (1 - c.b2 ** (step + 1))) + c.eps
                update = _muon_update(key, ahead) if key in in_layers else ahead / root
            is_decayed = declarations(MODEL)[key].decayed
            params[key] = params[key] - lr * (update + (decay if is_decayed else 0) * params[key])
        state, _ = step_fn(state, rows)
        for key, value in state.params.items():
            np.testing.assert_allclose(value, params[key], atol=5e-5, err_msg=f"{key} after step {step}")


def test_decay_leaves_out_norm_weights_and_alphas() -> None:
    decayed = {name for name, declared in declarations(MODEL).items() if declared.decayed}
    assert decayed == {"W_E", "W_pos", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U"}


@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("name", ["b_Q", "W_new", "ln_new"])
def test_a_new_parameter_is_decayed_by_its_declaration_not_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, decayed: bool
) -> None:
    initialise = Parameters.__init__

    def with_new(self: Parameters, config: ModelConfig, rngs: nnx.Rngs) -> None:
        initialise(self, config, rngs)
        value = jnp.full((1, 3, 5), 2.0)
        about = {"axes": "N H E", "sharded": False, "multiplies": False, "hooked": None}
        setattr(self, name, nnx.Param(value, decayed=decayed, **about))

    monkeypatch.setattr(Parameters, "__init__", with_new)
    declarations.cache_clear()
    try:
        config = _config()
        params = init_params(MODEL, seed=0)
        adamw = optimizer(config, jnp.int32(3), jnp.float32(0.5))
        updates, _ = adamw.update(jax.tree.map(jnp.zeros_like, params), adamw.init(params), params)
        np.testing.assert_allclose(updates[name], -0.5 * 0.3 * 2 if decayed else 0, rtol=1e-6)
        assert name in layer_names(MODEL)
    finally:
        declarations.cache_clear()


def _assert_same(a: tuple[TrainState, StepMetrics], b: tuple[TrainState, StepMetrics], atol: float) -> None:
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("first", "accum_steps"), [(2, 1), (T - 1, 3)])
def test_the_loss_of_some_positions_is_trained_on_and_that_of_all_recorded(first: int, accum_steps: int) -> None:
    config = _config(accum_steps=accum_steps, clip_norm=0.0)
    config = replace(config, train=replace(config.train, loss_from=first))
    state, rows = _start(config), _rows(0)

    @jax.grad
    def expected(params: Params, rows: jax.Array) -> jax.Array:
        loss_BT = reference_token_loss(forward(params, rows[:, :-1], MODEL), jnp.eye(V), rows[:, 1:])
        return jnp.mean(loss_BT[:, first:])

    execution = resolve(config.model, "cpu", config.train)
    loss_T, grads = jax.jit(partial(loss_and_grads, config=config, axes=Axes((), {}), execution=execution))(
        state.params, jnp.asarray(rows)
    )
    np.testing.assert_allclose(loss_T, _reference_grads(state.params, rows)[0], atol=1e-5)
    for name, value in expected(state.params, jnp.asarray(rows)).items():
        np.testing.assert_allclose(grads[name], value, atol=1e-5, err_msg=name)


def test_accumulated_step_equals_the_whole() -> None:
    # Adam divides by the root of the second moment: where that is near 0 rounding would be all there is.
    config = _config(eps=1e-2)
    whole, parts = _step_fn(config), _step_fn(_config(accum_steps=3, eps=1e-2))
    a = b = _start(config)
    for step in range(2):
        after, metrics = whole(a, _rows(step))
        after_parts, metrics_parts = parts(b, _rows(step))
        _assert_same((after, metrics), (after_parts, metrics_parts), atol=1e-6)
        a, b = after, after_parts


@example(n_rows=4, n_ctx=300, accum_steps=1)
@example(n_rows=3, n_ctx=513, accum_steps=2)
@given(n_rows=st.integers(1, 6), n_ctx=st.sampled_from([1, 3, 170, 256, 300, 513]), accum_steps=st.sampled_from([1, 2]))
@settings(max_examples=4, deadline=None)
def test_rows_cut_for_a_cpus_caches_give_the_uncut_losses_and_gradients(
    n_rows: int, n_ctx: int, accum_steps: int
) -> None:
    n_rows *= accum_steps
    model = dataclasses.replace(MODEL, n_ctx=513)
    config = _config(model=model, accum_steps=accum_steps)
    rows = jnp.asarray(np.random.default_rng(n_ctx).integers(0, V, (n_rows, n_ctx + 1), dtype=np.int32))
    params = random_params(model)
    execution, axes = resolve(model, "cpu", config.train), Axes((), {})
    cut, uncut = (
        jax.jit(partial(loss_and_grads, config=config, axes=axes, execution=replace(execution, n_micro_batches=n)))(
            params, rows
        )
        for n in (n_micro_batches(rows.shape, accum_steps, "cpu"), accum_steps)
    )
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(cut), jax.tree.leaves(uncut), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_bfloat16_activations_keep_float32_parameters_moments_and_loss() -> None:
    half = _config(model=dataclasses.replace(MODEL, compute_dtype="bfloat16"))
    state = _start(half)
    after, metrics = _step_fn(half)(state, _rows(0))
    for leaf in jax.tree.leaves((after.params, after.opt_state, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    assert metrics.loss_T.dtype == jnp.float32
    exact = _reference_grads(state.params, _rows(0))[0]
    assert 1e-5 < float(jnp.abs(metrics.loss_T - exact).max()) < 0.05


def test_one_trace_serves_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    n_traces = 0
    mean_loss = step_module.mean_loss

    def counting(*args: Any) -> Any:
        nonlocal n_traces
        n_traces += 1
        return mean_loss(*args)

    monkeypatch.setattr(step_module, "mean_loss", counting)
    config = _config()
    step_fn, state = _step_fn(config), _start(config)
    for step in range(3):
        state, _ = step_fn(state, _rows(step))
    assert n_traces == 1


def test_learned_positions_are_gathered_where_they_are_cut_over_devices() -> None:
    model = ModelConfig(
        n_layers=0, d_model=14, n_heads=7, n_ctx=T, vocab_size=V, positions="standard", position_embedding="learned"
    )
    after = []
    for n_devices, train in ((1, {}), (2, {"parallel": "mesh", "fsdp": 2})):
        config = _config(model=model)
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **train))
        parallel = ParallelStep(config, jax.devices()[:n_devices])
        state = parallel.put_state(_start(config))
        assert state.params["W_pos"].is_fully_replicated == (n_devices == 1)
        after.append(parallel.to_host(parallel.step(state, parallel.put_rows(_rows(0)))))
    _assert_same(*after, atol=1e-6)


def _lr(config: Config) -> list[float]:
    schedule = learning_rate_fn(config)
    return [float(schedule(jnp.int32(step))) for step in range(config.train.n_steps)]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak_at_its_last_step(schedule: Any) -> None:
    lr = _lr(_config(n_steps=20, lr=0.5, warmup_steps=5, schedule=schedule))
    np.testing.assert_allclose(lr[:5], [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    assert max(lr) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_cosine_goes_from_the_peak_to_its_final_fraction_at_the_last_step(warmup_steps: int) -> None:
    n_steps = 21
    lr = _lr(_config(n_steps=n_steps, lr=0.5, warmup_steps=warmup_steps, schedule="cosine", final_lr_fraction=0.2))
    phase = np.arange(n_steps - warmup_steps) / (n_steps - warmup_steps - 1)
    np.testing.assert_allclose(lr[warmup_steps:], 0.1 + 0.4 * (1 + np.cos(np.pi * phase)) / 2, rtol=1e-5)
    assert lr[warmup_steps] == pytest.approx(0.5)
    assert lr[-1] == pytest.approx(0.1)


def test_a_cosine_for_longer_than_the_run() -> None:
    whole = _lr(_config(n_steps=21, lr=0.5, warmup_steps=3, schedule="cosine"))
    assert _lr(_config(n_steps=9, lr=0.5, warmup_steps=3, schedule="cosine", schedule_steps=21)) == whole[:9]
    assert min(_lr(_config(n_steps=9, lr=0.5, warmup_steps=3, schedule="cosine"))[3:]) < min(whole[3:9])


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_constant_stays_at_the_peak(warmup_steps: int) -> None:
    lr = _lr(_config(n_steps=21, lr=0.5, warmup_steps=warmup_steps, schedule="constant"))
    np.testing.assert_allclose(lr[max(warmup_steps - 1, 0) :], 0.5, rtol=1e-6)


@pytest.mark.parametrize(("n_steps", "warmup_steps"), [(1, 0), (1, 1), (2, 1), (5, 5)])
def test_the_shortest_runs_have_a_learning_rate(n_steps: int, warmup_steps: int) -> None:
    lr = _lr(_config(n_steps=n_steps, lr=0.5, warmup_steps=warmup_steps, schedule="cosine", final_lr_fraction=0.1))
    assert all(0 < value <= 0.5 for value in lr)
    assert max(lr) == pytest.approx(0.5)
