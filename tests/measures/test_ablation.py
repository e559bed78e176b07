"""Ablations against an independent forward pass in NumPy, on random models."""

import dataclasses

import jax
import numpy as np
import pytest

from icl_jax.analysis import ablate
from icl_jax.config import ModelConfig
from icl_jax.measures import ablation
from icl_jax.measures.ablation import KINDS
from icl_jax.measures.ablation_effects import along_change
from icl_jax.measures.held_out_loss import held_out_loss
from icl_jax.model import execution
from tests.analysis.small_runs import random_rows
from tests.model.random_params import random_params

CONFIG = ModelConfig(n_layers=3, d_model=10, n_heads=2, n_ctx=7, vocab_size=13, position_embedding="learned")
N_ROWS = 5


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


class NumpyModel:
    """The forward pass of CONFIG with one head's values replaced and, if given, patterns of an earlier pass."""

    def __init__(self, params: dict[str, np.ndarray], rows: np.ndarray) -> None:
        self.params, self.rows = params, rows
        self.patterns: list[np.ndarray] = []
        self.z: list[np.ndarray] = []

    def loss(self, at: tuple[int, int] | None = None, new_z=None, patterns=None) -> np.ndarray:
        params, tokens, targets = self.params, self.rows[:, :-1], self.rows[:, 1:]
        resid = params["W_E"][tokens]
        mask = np.tril(np.ones((tokens.shape[1],) * 2, bool))
        self.patterns, self.z = [], []
        for layer in range(CONFIG.n_layers):
            x = _norm(resid, params["ln1_w"][layer])
            q, k = (np.einsum("btd,hde->bhte", x + params["W_pos"], params[name][layer]) for name in ("W_Q", "W_K"))
            v = np.einsum("btd,hde->bhte", x, params["W_V"][layer])
            scores = np.where(mask, np.einsum("bhqe,bhke->bhqk", q, k) / np.sqrt(CONFIG.head_width), -np.inf)
            pattern = np.exp(scores - scores.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            pattern = pattern if patterns is None else patterns[layer]
            z = np.einsum("bhqk,bhke->bhqe", pattern, v)
            self.patterns.append(pattern)
            self.z.append(z.copy())
            if at is not None and at[0] == layer:
                z[:, at[1]] = new_z
            resid = resid + np.einsum("bhte,hed->btd", z, params["W_O"][layer])
        logits = _norm(resid, params["ln_final_w"]) @ params["W_U"]
        log_sum = np.log(np.exp(logits).sum(-1))
        return log_sum - np.take_along_axis(logits, targets[..., None], -1)[..., 0]


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return random_rows(CONFIG, N_ROWS)


@pytest.mark.parametrize("rows_at_a_time", [N_ROWS, 2])
def test_losses_are_those_of_another_implementation(
    rows: np.ndarray, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken two rows at a time, the last round is filled up."""
    monkeypatch.setattr(ablation, "_TOKENS_AT_A_TIME", rows_at_a_time * CONFIG.n_ctx)
    params = random_params(CONFIG)
    loss = {name: np.asarray(v) for name, v in jax.jit(lambda params: ablate(params, rows, CONFIG))(params).items()}
    model = NumpyModel({name: np.asarray(value, np.float64) for name, value in params.items()}, rows)
    np.testing.assert_allclose(loss["intact"], model.loss(), atol=1e-5)
    patterns, z = model.patterns, model.z
    for layer in range(CONFIG.n_layers):
        for head in range(CONFIG.n_heads):
            at, here = (layer, head), z[layer][:, head]
            expected = {
                "full": model.loss(at, 0.0),
                "pattern_preserving": model.loss(at, 0.0, patterns),
                "mean": model.loss(at, here.mean(axis=0)),
                "resample": model.loss(at, np.roll(here, 1, axis=0)),
            }
            if rows_at_a_time == 2:
                # Each row takes the values of its neighbour within its round; the last row's is the first again.
                expected["resample"] = model.loss(at, here[[1, 0, 3, 2, 0]])
            for kind in KINDS:
                np.testing.assert_allclose(loss[kind][layer, head], expected[kind], atol=2e-5, err_msg=f"{kind} {at}")


def test_what_random_heads_do_depends_on_how_they_are_taken_away(rows: np.ndarray) -> None:
    loss = jax.jit(lambda params: ablate(params, rows, CONFIG))(random_params(CONFIG))
    kinds = [np.asarray(loss[kind])[0] for kind in KINDS]
    for i in range(4):
        for j in range(i):
            assert np.abs(kinds[i] - kinds[j]).max() > 0.01
    np.testing.assert_array_equal(np.asarray(loss["full"])[-1], np.asarray(loss["pattern_preserving"])[-1])


@pytest.mark.parametrize("is_scanned", [False, True])
def test_heads_of_some_layers_alone(rows: np.ndarray, is_scanned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_scanned:
        monkeypatch.setattr(execution, "_MAX_UNROLLED_LAYERS", 2)
    params = random_params(CONFIG)
    whole = jax.jit(lambda params: ablate(params, rows, CONFIG, ("full",)))(params)
    some = jax.jit(lambda params: ablate(params, rows, CONFIG, ("full",), layers=(2, 0)))(params)
    np.testing.assert_allclose(some["full"], whole["full"][np.array([2, 0])], atol=1e-5)
    for layers in ((), (3,), (-1,)):
        with pytest.raises(ValueError, match="must be layers from 0 to 2"):
            ablate(params, rows, CONFIG, layers=layers)


def test_a_single_row_has_no_other_to_draw_from(rows: np.ndarray) -> None:
    loss = jax.jit(lambda params: ablate(params, rows[:1], CONFIG))(random_params(CONFIG))
    assert np.isnan(loss["resample"]).all()
    assert all(np.isfinite(loss[kind]).all() for kind in ("intact", "full", "pattern_preserving", "mean"))


@pytest.mark.parametrize("tokens_at_a_time", [4096, 2 * CONFIG.n_ctx])
def test_held_out_loss_is_that_of_another_implementation(
    rows: np.ndarray, tokens_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icl_jax.measures.map_rows.TOKENS_AT_A_TIME", tokens_at_a_time)
    params = random_params(CONFIG)
    expected = NumpyModel({name: np.asarray(value, np.float64) for name, value in params.items()}, rows).loss()
    np.testing.assert_allclose(held_out_loss(params, rows, CONFIG), expected, atol=1e-5)


def test_ablation_runs_on_models_with_mlps_and_rotary_positions(rows: np.ndarray) -> None:
    config = dataclasses.replace(CONFIG, d_model=12, d_mlp=11, positions="rotary", smeared_keys=True, norm="layernorm")
    params = random_params(config)
    loss = jax.jit(lambda params: ablate(params, rows, config))(params)
    np.testing.assert_allclose(loss["intact"], held_out_loss(params, rows, config), atol=1e-5)
    # A head whose W_O is zero is not missed.
    silent = {**params, "W_O": params["W_O"].at[1, 0].set(0.0)}
    loss = jax.jit(lambda params: ablate(params, rows, config))(silent)
    for kind in KINDS:
        np.testing.assert_allclose(loss[kind][1, 0], loss["intact"], atol=1e-5)
        assert np.abs(loss[kind][1, 1] - loss["intact"]).max() > 1e-3


def test_along_the_change_is_a_share_of_it() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 11))
    across = rng.normal(size=11)
    across -= (across @ (after - before)) / ((after - before) @ (after - before)) * (after - before)
    ablated = np.stack([before, after, after - 0.25 * (after - before) + across])
    np.testing.assert_allclose(along_change(ablated, after[None], before, after), [-1, 0, -0.25], atol=1e-12)
    assert np.isnan(along_change(ablated, after[None], after, after)).all()
