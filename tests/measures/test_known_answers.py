"""The numbers of docs/measures.md, through the analysis of a run directory and through the functions alone."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import icl_jax
from icl_jax.analysis import ablate, duplicate_token, induction_stripe, patterns, prefix_matching, previous_token
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import ModelConfig
from icl_jax.measures.ablation import KINDS
from icl_jax.measures.held_out_loss import held_out_loss
from icl_jax.model.params import Params, init_params
from tests.analysis.small_runs import hand_built_run, random_run
from tests.hand_built import GAMMA, induction_model, repeated_rows, smeared_induction_model

LN_V = math.log(64)
LOSS_ON_REPEATS = math.log1p(63 * math.exp(-GAMMA))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """BOS + 25 x 4, int32 [10, 101]."""
    return repeated_rows()


def test_head_scores_of_the_hand_built_model(rows: np.ndarray) -> None:
    params, config = induction_model()
    scores = _scores(params, config, rows)
    np.testing.assert_allclose(scores["prefix_matching"], [[0.0], [1.0]], atol=1e-3)
    # Three copies later on have 1, 2 and 3 targets each: all attention is on one of them or shared.
    np.testing.assert_allclose(scores["mean"], [[0.0], [0.5]], atol=1e-3)
    np.testing.assert_allclose(scores["previous_token"], [[1.0], [0.01]], atol=1e-3)
    np.testing.assert_allclose(scores["duplicate_token"], [[0.0], [0.0]], atol=1e-3)


def test_stripe_is_named_apart_and_counts_an_entry_that_rests(rows: np.ndarray) -> None:
    params, config = induction_model()
    twice = repeated_rows(repeat_len=50, n_repeats=2)
    scores = _scores(params, config, twice)
    np.testing.assert_allclose(scores["induction_stripe"], [[0.0], [51 / 52]], atol=1e-3)
    np.testing.assert_allclose(scores["prefix_matching"], [[0.0], [1.0]], atol=1e-3)
    detector = _multiplied(np.asarray(patterns(params, twice, config))[1, :, 0], twice)
    assert detector == pytest.approx(50 / 101, abs=1e-4)


def _scores(params: Params, config: ModelConfig, rows: np.ndarray) -> dict[str, np.ndarray]:
    """All scores of all heads, by the functions' names, compiled together."""
    functions = (prefix_matching, previous_token, duplicate_token, induction_stripe)

    @jax.jit
    def take(params: Params) -> dict[str, jax.Array]:
        mean = prefix_matching(params, rows, config, reduce="mean")
        return {function.__name__: function(params, rows, config) for function in functions} | {"mean": mean}

    return {name: np.asarray(value) for name, value in take(params).items()}


def _multiplied(pattern_BQK: np.ndarray, tokens: np.ndarray) -> float:
    """TransformerLens's `head_detector` for induction, error measure "mul": attention on targets over all attention."""
    target = np.zeros_like(pattern_BQK)
    for b, row in enumerate(tokens):
        for q in range(len(row)):
            for k in range(1, q + 1):
                target[b, q, k] = row[k - 1] == row[q] and k - 1 < q
    return float((pattern_BQK * target).sum() / pattern_BQK.sum())


def test_scores_of_an_untrained_model_are_those_of_uniform_attention(rows: np.ndarray) -> None:
    config = ModelConfig(n_layers=2, d_model=48, n_heads=3, n_ctx=101)
    params = init_params(config, seed=0)
    expected = {
        "prefix_matching": np.mean([r / (2 + r * 25 + i) for r in (1, 2, 3) for i in range(25)]),
        "previous_token": np.mean([1 / (q + 1) for q in range(1, 101)]),
        "duplicate_token": np.mean([r / (2 + r * 25 + i) for r in (1, 2, 3) for i in range(25)]),
    }
    assert expected["prefix_matching"] == pytest.approx(0.0307, abs=5e-5)
    assert expected["previous_token"] == pytest.approx(0.042, abs=5e-4)
    scores = _scores(params, config, rows)
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], np.full((2, 3), value), atol=1e-3)


@pytest.mark.parametrize(("alpha", "matching"), [(20.0, 0.0), (0.0, 0.307), (-1.0, 0.998), (-3.0, 1.0)])
def test_one_smeared_layer_matches_prefixes(rows: np.ndarray, alpha: float, matching: float) -> None:
    params, config = smeared_induction_model(alpha)
    np.testing.assert_allclose(prefix_matching(params, rows, config), [[matching]], atol=5e-4)


def test_loss_of_the_first_copy_and_of_the_others(rows: np.ndarray) -> None:
    params, config = induction_model()
    loss_BT = np.asarray(held_out_loss(params, rows, config))
    assert loss_BT.shape == (10, 100)
    np.testing.assert_allclose(loss_BT[:, :26], LN_V, atol=2e-4)
    np.testing.assert_allclose(loss_BT[:, 26:], LOSS_ON_REPEATS, atol=2e-5)


def test_ablations_of_the_hand_built_model(rows: np.ndarray) -> None:
    params, config = induction_model()
    loss = {name: np.asarray(value) for name, value in ablate(params, rows, config).items()}
    repeats = slice(26, None)
    intact = loss["intact"][:, repeats].mean()
    effect = {kind: loss[kind][..., repeats].mean(axis=(-2, -1))[:, 0] - intact for kind in KINDS}
    np.testing.assert_allclose(effect["full"], [4.1585, 4.1585], atol=2e-4)
    np.testing.assert_allclose(effect["pattern_preserving"], [0.0, 4.1585], atol=2e-4)
    # Another row's token is worse than none: the model is sure of the wrong one.
    assert effect["resample"][1] == pytest.approx(GAMMA, abs=1.0)
    # The mean over rows says a tenth of what each row is followed by, the row itself among them.
    logits_TV = GAMMA / 10 * np.stack([np.bincount(rows[:, t + 1], minlength=64) for t in range(26, 100)])
    log_sum_T = np.log(np.exp(logits_TV).sum(axis=-1))
    expected = np.mean([log_sum_T - logits_TV[np.arange(74), row[27:]] for row in rows])
    assert effect["mean"][1] == pytest.approx(expected - LOSS_ON_REPEATS, abs=1e-3)


def test_ablations_of_an_untrained_model_do_next_to_nothing(rows: np.ndarray) -> None:
    config = ModelConfig(n_layers=2, d_model=48, n_heads=3, n_ctx=101)
    loss = {name: np.asarray(value) for name, value in ablate(init_params(config, seed=0), rows, config).items()}
    for kind in KINDS:
        np.testing.assert_allclose(loss[kind].mean(axis=(-2, -1)), loss["intact"].mean(), atol=0.02)


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    path = tmp_path_factory.mktemp("hand_built") / "run"
    analyze(hand_built_run(path))
    return icl_jax.open_run(str(path)).analysis.load()


def test_a_run_whose_induction_head_grows_has_its_phase_change_there(analysis: xr.Dataset) -> None:
    # The gain grows from step 40 to step 60, straight.
    assert 30 <= int(analysis["step_before"]) <= 50
    assert 50 <= int(analysis["step_after"]) <= 70
    assert str(analysis["change_status"].values) == "found"
    assert float(analysis["change_p"]) < 0.03
    before, after = float(analysis["icl_windowed"][0]), float(analysis["icl_windowed"][-1])
    ln_v = math.log(24)
    # All of the late window is in later copies; half of the early one.
    assert before == pytest.approx(0, abs=1e-3)
    assert -ln_v - 1e-3 < after < -1.5
    assert float(analysis["change_size"][0]) == pytest.approx(after - before, rel=0.05)
    assert float(analysis["change_share"][0]) == pytest.approx(1, abs=0.05)
    assert np.isnan(analysis["change_size"].values[1:]).all()
    np.testing.assert_allclose(analysis["loss_by_position"].values[0], ln_v, atol=1e-3)
    tokens_per_step = float(analysis["tokens"][-1]) / 100
    # At half the gain the score has nearly fallen.
    for side in ("start", "end"):
        low, high = analysis[f"change_{side}_interval"].values[0] / tokens_per_step
        assert 38 < low <= float(analysis[f"change_{side}"][0]) / tokens_per_step <= high < 60
    assert 30 <= int(analysis["steepest_start"]) <= 50
    assert 50 <= int(analysis["steepest_end"]) <= 70
    assert float(analysis["steepest_share"]) > 0.9
    low, high = analysis["steepest_start_interval"].values
    assert low <= float(analysis["steepest_start_tokens"]) + 10_000
    assert low <= high


def test_a_run_tells_induction_heads_by_score_and_by_ablation(analysis: xr.Dataset) -> None:
    end = int(analysis["step_after"])
    np.testing.assert_allclose(analysis["prefix_matching"].sel(snapshot=end).values, [[0], [1]], atol=1e-3)
    np.testing.assert_allclose(analysis["previous_token"].sel(snapshot=end).values[0], [1], atol=1e-3)
    at_end = analysis.sel(selected=end)
    np.testing.assert_allclose(at_end["pattern_preserving_along_change"], [[0], [-1]], atol=2e-3)
    np.testing.assert_allclose(at_end["full_along_change"], [[-1], [-1]], atol=2e-3)
    icl = -float(analysis["icl_windowed"].sel(snapshot=end))
    np.testing.assert_allclose(at_end["pattern_preserving_icl_effect"], [[0], [icl]], atol=2e-2)


def test_tokens_that_induction_gets_right_improve_and_new_ones_do_not(analysis: xr.Dataset) -> None:
    assert float(analysis["induction_correct_change"]) == pytest.approx(-math.log(24), abs=2e-2)
    assert float(analysis["new_prefix_change"]) == pytest.approx(0, abs=1e-3)
    # Every token is followed by the same one each time.
    assert float(analysis["induction_wrong_share"]) == 0
    assert "no held-out token" in analysis["induction_wrong_change"].attrs["missing"]


def test_nothing_is_missing_without_a_reason(analysis: xr.Dataset) -> None:
    for name, variable in analysis.variables.items():
        is_bad = variable.dtype.kind == "f" and not np.isfinite(variable.values).all()
        assert is_bad == ("missing" in variable.attrs), name
        assert "UNEXPECTED" not in variable.attrs.get("missing", ""), name


@pytest.mark.parametrize("n_layers", [0, 1])
def test_models_without_heads_or_pairs_of_heads_say_what_is_absent(tmp_path: Path, n_layers: int) -> None:
    model = ModelConfig(n_layers=n_layers, d_model=6, n_heads=3, n_ctx=17, vocab_size=19)
    dataset = analyze(random_run(tmp_path / "run", model, (0, 1, 4)))
    absent = json.loads(dataset.attrs["absent"])
    assert "smear" in absent
    assert "composition" in absent
    assert ("head_scores" in absent) == (n_layers == 0)
    assert all(reason for reason in absent.values())
    for name, variable in dataset.variables.items():
        assert "UNEXPECTED" not in variable.attrs.get("missing", ""), name
    assert ("layer" in dataset.coords) == (n_layers > 0)


def test_a_context_too_short_to_repeat_in_is_said_to_be(tmp_path: Path) -> None:
    model = ModelConfig(n_layers=1, d_model=6, n_heads=3, n_ctx=5, vocab_size=19)
    dataset = analyze(random_run(tmp_path / "run", model, (0, 1, 4)), only=["head_scores", "ablation_effects"])
    assert "n_ctx = 5: too short" in json.loads(dataset.attrs["absent"])["head_scores"]
    assert np.isfinite(dataset["full_loss_effect"]).all()


def test_functions_take_arrays_of_either_kind(rows: np.ndarray) -> None:
    params, config = induction_model()
    on_numpy = prefix_matching({name: np.asarray(v) for name, v in params.items()}, rows, config)
    np.testing.assert_array_equal(on_numpy, prefix_matching(params, jnp.asarray(rows), config))
    with pytest.raises(ValueError, match="reduce="):
        prefix_matching(params, rows, config, reduce="max")
