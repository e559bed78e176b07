"""Literal copying against loops, and on the hand-built induction model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import Config, ModelConfig
from icl_jax.measures.literal_copying import MEASUREMENT, said_twice
from icl_jax.model.forward import run_with_cache
from tests.analysis.random_snapshots import context, stacked
from tests.data_configs import data_config
from tests.hand_built import GAMMA, induction_model

MODEL = ModelConfig(n_layers=2, d_model=10, n_heads=5, n_ctx=14, vocab_size=19, norm="none", d_mlp=7)


def test_half_a_row_is_said_twice() -> None:
    rows = np.array([[0, 5, 6, 7, 8, 9, 1, 2]])
    np.testing.assert_array_equal(said_twice(rows), [[0, 5, 6, 7, 5, 6, 7]])
    np.testing.assert_array_equal(said_twice(rows[:, :5]), [[0, 5, 6, 5, 6]])


def test_a_random_model_against_loops() -> None:
    params = stacked(MODEL, 2)
    found = MEASUREMENT.measure(context(MODEL), params)
    assert set(found) == set(MEASUREMENT.variables)
    one = {name: jnp.asarray(value[1]) for name, value in params.items()}
    rows = context(MODEL).held_out[:, :14]
    half = 6  # (14 - 1) // 2
    tokens = np.concatenate([rows[:, :7], rows[:, 1:7]], axis=1)

    @jax.jit
    def run(params: dict, tokens: np.ndarray) -> tuple:
        logits, cache = run_with_cache(params, tokens, MODEL, ("pattern", "result"))
        return logits, {f"{name} {layer}": value for (name, layer), value in cache.items()}

    logits, cache = jax.tree.map(np.asarray, run(one, tokens))
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    W_U = np.asarray(one["W_U"], np.float64)
    attention, added, whole, gain = [], [], [], []
    for b in range(len(rows)):
        for i in range(1, half):  # the i-th token of the copy; the next is known from the first time
            q, target = half + i, tokens[b, i + 1]
            attention.append([[cache[f"pattern {n}"][b, h, q, i + 1] for h in range(5)] for n in range(2)])
            write = np.stack([cache[f"result {n}"][b, q] for n in range(2)]) @ W_U
            added.append(write[..., target] - write.mean(-1))
            whole.append(logits[b, q, target] - logits[b, q].mean())
            gain.append(log_p[b, i, target] - log_p[b, q, target])
    np.testing.assert_allclose(found["literal_copying_attention"][1], np.mean(attention, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["literal_copying_logit"][1], np.mean(added, axis=0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["literal_copying_gain"][1], np.mean(gain), rtol=1e-4, atol=1e-5)
    share = np.mean(added, axis=0) / np.mean(whole) if np.mean(whole) > 0 else np.full((2, 5), np.nan)
    np.testing.assert_allclose(found["literal_copying_share"][1], share, rtol=1e-3, atol=1e-5)


def test_the_hand_built_induction_head_does_all_of_it() -> None:
    params, model = induction_model(n_ctx=41, vocab_size=24)
    rng = np.random.default_rng(0)
    rows = np.stack([np.concatenate([[0], rng.permutation(np.arange(1, 24))[:20], np.ones(21)]) for _ in range(3)])
    config = Config(model=model, data=data_config(phrase_len=2))
    setting = dataclasses.replace(context(model), config=config, held_out=rows.astype(np.int32))
    found = MEASUREMENT.measure(setting, {name: np.asarray(value)[None] for name, value in params.items()})
    np.testing.assert_allclose(found["literal_copying_attention"][0, :, 0], [0, 1], atol=1e-3)
    np.testing.assert_allclose(found["literal_copying_logit"][0, :, 0], [0, GAMMA * (1 - 1 / 24)], rtol=1e-3)
    np.testing.assert_allclose(found["literal_copying_share"][0, :, 0], [0, 1], atol=1e-4)
    loss = np.log1p(23 * np.exp(-GAMMA))
    np.testing.assert_allclose(found["literal_copying_gain"], loss - np.log(24), rtol=1e-3)


def test_where_nothing_is_raised_there_is_no_share() -> None:
    params = {name: np.zeros_like(value) for name, value in stacked(MODEL, 1).items()}
    found = MEASUREMENT.measure(context(MODEL), params)
    assert np.isnan(found["literal_copying_share"]).all()
    np.testing.assert_array_equal(found["literal_copying_gain"], 0)


def test_what_it_does_not_apply_to() -> None:
    for change, why in (({"n_layers": 0, "d_mlp": 0}, "no layers"), ({"n_ctx": 4}, "n_ctx = 4: too short")):
        assert why in (MEASUREMENT.why_not(context(dataclasses.replace(MODEL, **change))) or "")
    assert MEASUREMENT.why_not(context(dataclasses.replace(MODEL, n_ctx=5))) is None
