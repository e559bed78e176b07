"""Tens of layers run under a scan and are looked at one at a time: the same numbers, less memory."""

import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.analysis import ablate, direct_logit_attribution
from icl_jax.config import ModelConfig
from icl_jax.measures import ablation, circuits, copying, head_scores, literal_copying, qk_trace
from icl_jax.measures.measurement import Measurement, StackedParams
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model import execution
from tests.analysis.random_snapshots import context, stacked
from tests.model.random_params import random_params

SIZES = {"n_layers": 3, "d_model": 12, "n_heads": 4, "d_head": 6, "n_kv_heads": 2, "n_ctx": 17, "vocab_size": 13}
ALIKE = ModelConfig(
    **SIZES, d_mlp=7, gated_mlp=True, biases=("b_Q", "b_V", "b_O", "b_U"), positions="rotary",
    parallel_residual="two_norms", norm_position="both",
)  # fmt: skip
SEVERAL_KINDS = ModelConfig(**SIZES, positions="rotary", no_rotary_layers=(1,), window=5, window_layers=(2,))
LOOKED_AT = (
    head_scores.MEASUREMENT, copying.MEASUREMENT, qk_trace.MEASUREMENT, literal_copying.MEASUREMENT
)  # fmt: skip


def _all(config: ModelConfig, params: StackedParams) -> dict[str, np.ndarray]:
    setting = context(config)
    found: dict[str, np.ndarray] = {}
    for measurement in LOOKED_AT:
        found |= measurement.measure(setting, params)
    one = {name: value[0] for name, value in params.items()}
    attributed = direct_logit_attribution(one, setting.held_out[:2], config)
    return found | {name: np.asarray(value) for name, value in attributed._asdict().items()}


@pytest.mark.parametrize("config", [ALIKE, SEVERAL_KINDS], ids=["alike", "several kinds"])
def test_layers_looked_at_one_by_one_give_what_all_at_once_do(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = stacked(config, 1)
    shallow = _all(config, params)
    monkeypatch.setattr(execution, "_MAX_UNROLLED_LAYERS", 2)
    _forget_compiled()
    deep = _all(config, params)
    for name, expected in shallow.items():
        np.testing.assert_allclose(deep[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)


def test_heads_of_scanned_layers_are_ablated_as_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    params, rows = random_params(ALIKE), context(ALIKE, 5).held_out
    monkeypatch.setattr(ablation, "_TOKENS_AT_A_TIME", 2 * ALIKE.n_ctx)
    expected = jax.jit(lambda params: ablate(params, rows, ALIKE))(params)
    monkeypatch.setattr(execution, "_MAX_UNROLLED_LAYERS", 2)
    found = jax.jit(lambda params: ablate(params, rows, ALIKE))(params)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-5, err_msg=name)
    sets = np.zeros((1, ALIKE.n_layers, ALIKE.n_heads), bool)
    sets[0, 0, 3] = True
    for kind in ("full", "pattern_preserving"):
        of_set = jax.jit(ablation.ablate_sets, static_argnums=(2, 4))(params, jnp.asarray(rows), ALIKE, sets, kind)
        np.testing.assert_allclose(of_set[0], expected[kind][0, 3], atol=2e-5, err_msg=kind)


def _forget_compiled() -> None:
    from icl_jax.measures.map_snapshots import _compiled

    _compiled.cache_clear()


def test_one_kind_of_ablation_is_that_of_all_kinds_and_of_a_set_of_one_head() -> None:
    params, rows = random_params(ALIKE), context(ALIKE, 4).held_out
    alone = jax.jit(lambda params: ablate(params, rows, ALIKE, ("full",)))(params)
    assert set(alone) == {"intact", "full"}
    sets = np.zeros((2, ALIKE.n_layers, ALIKE.n_heads), bool)
    sets[1, 1, 2] = True
    found = ablation.ablate_sets(params, rows, ALIKE, sets)
    np.testing.assert_allclose(found[0], alone["intact"], atol=1e-5)
    np.testing.assert_allclose(found[1], alone["full"][1, 2], atol=1e-5)
    assert np.abs(found[1] - found[0]).max() > 1e-2
    with pytest.raises(ValueError, match="kinds has zero: must be of full, pattern_preserving, mean, resample"):
        ablate(params, rows, ALIKE, ("full", "zero"))


@pytest.mark.parametrize("measurement", LOOKED_AT, ids=lambda m: m.name)
def test_no_more_than_a_few_layers_patterns_are_there_at_a_time(measurement: Measurement) -> None:
    """Of 12 layers: memory that the compiled program takes beside its inputs and answers."""
    model = ModelConfig(n_layers=12, d_model=8, n_heads=4, n_ctx=257, vocab_size=31, positions="rotary")
    setting, look = context(model, 12), measurement.look
    assert look is not None
    rows, reads = jax.tree.map(jnp.asarray, (setting.arrays, measurement.reads(setting)))

    def program(params: Any) -> dict[str, jax.Array]:
        return look(Snapshot(params, rows, model), *reads)

    one_layer = 4 * 10 * model.n_heads * 257**2
    analysis = jax.jit(program).lower(random_params(model)).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 6 * one_layer


def test_products_with_a_vocabulary_are_not_there_for_all_heads_at_once() -> None:
    """[layer, head, V, E] in float64 would be 31 MB; of W_E it is 2."""
    model = ModelConfig(n_layers=4, d_model=32, n_heads=4, n_ctx=9, vocab_size=7_800)
    params, setting = stacked(model, 1), context(model)
    seen = {name: np.zeros(1) for name in ("source", "source_paper", "output", "undefined", "output_undefined")}
    for finish, answer in ((circuits.MEASUREMENT.finish, {}), (copying.MEASUREMENT.finish, seen)):
        tracemalloc.start()
        finish(setting, params, answer)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 9 * params["W_E"].size * 8
