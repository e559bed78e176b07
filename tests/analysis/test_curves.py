"""What is read off curves over training or over the context: known answers on curves made by hand."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_jax.analysis.choose_snapshots import choose_few, spread
from icl_jax.config import ModelConfig
from icl_jax.maths.icl_score import icl_score, icl_windowed
from icl_jax.maths.steepest_fall import smooth, steepest_fall
from icl_jax.measures import bump as bump_module
from icl_jax.measures import icl as icl_module
from icl_jax.measures.bump import bump, convex_hull_below
from icl_jax.measures.held_out_loss import icl_windowed_by_row
from icl_jax.measures.loss_by_log_tokens import derivative_by_log_tokens, loss_derivatives
from icl_jax.measures.loss_derivative import derivative_by_log_index, index_bins
from icl_jax.measures.pca import pca, turning_angles
from icl_jax.measures.phase_change import snapshots_around
from icl_jax.measures.steepest_fall import bootstrap_windows, window_in_tokens
from icl_jax.measures.token_classes import class_means, classify_tokens
from tests.analysis.random_snapshots import context

# Snapshots as a run has them: log-spaced ones joined with evenly spaced ones.
TOKENS = np.unique(np.concatenate([[0], np.geomspace(1, 1000, 60).round(), np.linspace(10, 1000, 60).round()])) * 1000


def falling(tokens: np.ndarray, start: float, end: float, drop: float) -> np.ndarray:
    """Flat, a straight fall by `drop` nats between two numbers of tokens, flat."""
    return -drop * np.clip((tokens - start) / (end - start), 0, 1)


# --- phase change


@pytest.mark.parametrize(("start", "end"), [(200e3, 300e3), (500e3, 800e3), (100e3, 150e3)])
def test_the_window_is_where_the_score_falls(start: float, end: float) -> None:
    found = window_in_tokens(TOKENS, falling(TOKENS, start, end, 0.4))
    assert found == pytest.approx((start, end), abs=35e3)
    first, last = snapshots_around(TOKENS, *found)
    assert TOKENS[first] <= found[0] < TOKENS[first + 1]
    assert TOKENS[last - 1] < found[1] <= TOKENS[last]


def test_noise_among_the_dense_early_snapshots_is_not_taken_for_the_change() -> None:
    rng = np.random.default_rng(0)
    noisy = falling(TOKENS, 500e3, 700e3, 0.4) + rng.normal(0, 0.01, len(TOKENS))
    start, end = window_in_tokens(TOKENS, noisy)
    assert start == pytest.approx(500e3, abs=60e3)
    assert end == pytest.approx(700e3, abs=60e3)


def test_steepest_fall_of_three_points_and_of_fewer() -> None:
    found = steepest_fall(np.array([0, 1, 2]), np.array([0.0, 0.0, -1.0]))
    assert found.end == 2
    assert found.drop < 0
    with pytest.raises(ValueError, match="2 points"):
        steepest_fall(np.array([0, 1]), np.array([0.0, 1.0]))


def test_a_score_that_only_rises_has_a_window_of_one_point_and_no_drop() -> None:
    found = steepest_fall(np.arange(20), np.linspace(0.0, 1.0, 20))
    assert (found.start, found.drop) == (found.end, 0.0)


def test_the_interval_is_wide_where_rows_disagree() -> None:
    rng = np.random.default_rng(0)
    agreed = np.repeat(falling(TOKENS, 400e3, 500e3, 0.4)[:, None], 30, axis=1)
    starts = rng.uniform(200e3, 700e3, 30)
    different = np.stack([falling(TOKENS, start, start + 1e5, 0.4) for start in starts], axis=1)
    narrow = bootstrap_windows(TOKENS, agreed, seed=0, n_samples=50)
    wide = bootstrap_windows(TOKENS, different, seed=0, n_samples=50)
    assert narrow.shape == (50, 2)
    assert np.ptp(narrow, axis=0).max() == 0
    assert np.ptp(wide, axis=0).min() > 20e3
    np.testing.assert_array_equal(wide, bootstrap_windows(TOKENS, different, seed=0, n_samples=50))


def test_smooth_is_a_mean_over_the_neighbours_there_are() -> None:
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0, 4.0]), 3), [1.5, 3, 4, 5])
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0, 4.0]), 3, is_symmetric=True), [1, 3, 4, 4])
    line = np.linspace(0.0, 1.0, 9)
    np.testing.assert_allclose(smooth(line, 5, is_symmetric=True), line)


# --- ICL score


def test_row_scores_average_to_the_score_of_the_mean_loss() -> None:
    loss = np.random.default_rng(0).normal(3, 1, (4, 7, 64))
    by_row = icl_windowed_by_row(loss)
    np.testing.assert_allclose(by_row.mean(axis=1), [icl_windowed(x.mean(axis=0)) for x in loss], atol=1e-12)
    single = icl_score(loss)
    dataset = xr.Dataset(
        {
            "loss_by_position": (("snapshot", "position"), loss.mean(axis=1)),
            "row_icl": (("snapshot", "row"), by_row),
            "row_icl_score": (("snapshot", "row"), single),
        }
    )
    answer = icl_module.derive(context(ModelConfig(n_ctx=64)), dataset)
    np.testing.assert_allclose(answer["icl_sem"], by_row.std(axis=1, ddof=1) / np.sqrt(7))
    np.testing.assert_allclose(answer["icl_windowed"], by_row.mean(axis=1), atol=1e-6)
    # Two positions of standard deviation 1: their difference over seven rows.
    np.testing.assert_allclose(answer["icl_score_sem"], single.std(axis=1, ddof=1) / np.sqrt(7))
    assert answer["icl_score_sem"].mean() == pytest.approx(np.sqrt(2 / 7), rel=0.4)


# --- bump


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=12))
@settings(max_examples=60)
def test_hull_is_convex_below_and_touches(heights: list[float]) -> None:
    x, y = np.arange(len(heights)) ** 1.5, np.array(heights)
    hull = convex_hull_below(x, y)
    assert (hull <= y + 1e-9).all()
    assert np.isclose(hull, y, atol=1e-9).sum() >= 2
    slopes = np.diff(hull) / np.diff(x)
    assert (np.diff(slopes) >= -1e-6).all()


def test_a_plateau_before_a_fall_is_a_bump_and_a_convex_curve_has_none() -> None:
    convex = 2 + 3 * np.exp(-TOKENS / 100e3)
    _, bend, height, _ = bump(TOKENS, convex)
    assert height == pytest.approx(0, abs=1e-3)
    assert bend[3:-3].min() > -1e-3
    bumpy = convex + falling(TOKENS, 600e3, 700e3, 0.5)
    grid, bend, height, where = bump(TOKENS, bumpy)
    assert height > 0.2
    assert where == pytest.approx(600e3, abs=60e3)
    assert grid[np.argmin(bend)] == pytest.approx(600e3, abs=60e3)
    assert bend.min() < -0.01


def test_warm_up_is_left_out() -> None:
    slow_start = 5 - 3 * np.clip(TOKENS - 100e3, 0, 1e6) / 1e6
    assert bump(TOKENS, slow_start)[2] > 0.05
    assert bump(TOKENS, slow_start, first_tokens=150e3)[2] == pytest.approx(0, abs=1e-9)
    assert bump_module.DERIVED.name == "bump"


# --- derivative by log index


@given(n_ctx=st.integers(2, 700))
@settings(max_examples=60)
def test_bins_cover_every_index_once(n_ctx: int) -> None:
    bins = index_bins(n_ctx)
    assert [i for a, b in bins for i in range(a, b)] == list(range(n_ctx))
    assert all(b > a for a, b in bins)
    assert 2 <= len(bins) <= 24


def test_derivative_of_a_logarithm_is_its_factor() -> None:
    index = np.arange(1, 513)
    loss = np.stack([3 - 0.4 * np.log(index), np.full(512, 2.0)])
    centre, derivative = derivative_by_log_index(loss)
    assert centre[0] == pytest.approx(1)
    assert 400 < centre[-1] < 512
    np.testing.assert_allclose(derivative[0], -0.4, atol=2e-3)
    np.testing.assert_allclose(derivative[1], 0, atol=1e-12)


# --- derivative by log tokens, inversion


def test_derivative_by_tokens_of_a_logarithm_is_its_factor() -> None:
    grid = np.geomspace(2e3, 900e3, 50)
    loss = np.where(TOKENS > 0, 5 - 0.3 * np.log(np.maximum(TOKENS, 1)), 99.0)
    np.testing.assert_allclose(derivative_by_log_tokens(TOKENS, loss, grid)[3:-3], -0.3, atol=5e-3)


def test_models_whose_order_turns_over_are_found() -> None:
    logs = np.log(np.maximum(TOKENS, 1))
    turn = np.log(50e3)
    # The larger learns faster before 50,000 tokens and more slowly after it.
    small = 5 - 0.1 * np.minimum(logs, turn) - 0.3 * np.maximum(logs - turn, 0)
    large = 5 - 0.3 * np.minimum(logs, turn) - 0.1 * np.maximum(logs - turn, 0)
    found = loss_derivatives([(TOKENS, small), (TOKENS, large)])
    assert found.rank[3] == -1
    assert found.rank[-3] == 1
    assert found.inversions == pytest.approx([50e3], rel=0.2)
    assert np.isnan(loss_derivatives([(TOKENS, small)]).rank).all()
    with pytest.raises(ValueError, match="in common"):
        loss_derivatives([(TOKENS[:10], small[:10]), (TOKENS[20:], large[20:])])


# --- PCA


def test_scores_and_directions_give_the_vectors_back() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.normal(size=(5, 7)), rng.normal(size=(6, 7))]
    found = pca(runs, n_components=7)
    assert found.explained.sum() == pytest.approx(1)
    for run, scores in zip(runs, found.scores, strict=True):
        np.testing.assert_allclose(scores @ found.directions + found.mean, run, atol=1e-12)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(7), atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_signs_follow_the_first_run(sign: int) -> None:
    rng = np.random.default_rng(1)
    a, b = np.linalg.qr(rng.normal(size=(30, 2)))[0].T
    t = np.linspace(0, 1, 9)[:, None]
    learning = 10 * (1 - t) * a * sign + np.sin(np.pi * t) * b
    found = pca([learning, learning[::-1] * 0.5])
    first = found.scores[0]
    assert first[-1, 0] < first[0, 0]
    assert first[0, 1] >= 0
    assert found.scores[0].shape == (9, 2)
    assert found.explained[0] > found.explained[1]


def test_turning_is_the_angle_at_a_corner() -> None:
    points = np.array([[0.0, 0], [1, 0], [2, 0], [2, 1], [1, 1], [2, 1]])
    np.testing.assert_allclose(turning_angles(points), [0, 0, np.pi / 2, np.pi / 2, np.pi, 0], atol=1e-12)


# --- token classes


def test_tokens_are_classed_by_what_followed_their_prefix() -> None:
    #          0  1  2  3  4  5  6  7  8
    row = np.array([[0, 5, 6, 7, 5, 6, 8, 5, 7]])
    # 6 after 5 and seen: right. 8 after 6, seen with 7: wrong. 7 after 5, seen with 6: wrong.
    assert classify_tokens(row).tolist() == [[2, 2, 2, 2, 0, 1, 2, 1]]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=14))
@settings(max_examples=60)
def test_classes_equal_their_definition(row: list[int]) -> None:
    found = classify_tokens(np.array([row]))[0]
    for t in range(1, len(row)):
        earlier = [j for j in range(1, t) if row[j - 1] == row[t - 1]]
        expected = 2 if not earlier else 0 if any(row[j] == row[t] for j in earlier) else 1
        assert found[t - 1] == expected


def test_class_means_are_over_the_tokens_of_the_class() -> None:
    loss = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    means = class_means(loss, np.array([[0, 2, 2], [0, 2, 2]]))
    np.testing.assert_allclose(means["induction_correct_loss"], [1.5, 7.5])
    np.testing.assert_allclose(means["new_prefix_loss"], [3, 9])
    assert np.isnan(means["induction_wrong_loss"]).all()


# --- which snapshots


@given(n=st.integers(1, 60), n_chosen=st.integers(2, 70))
@settings(max_examples=60)
def test_spread_takes_both_ends_and_no_more_than_asked(n: int, n_chosen: int) -> None:
    chosen = spread(n, n_chosen)
    assert {0, n - 1} <= set(chosen)
    assert len(chosen) == min(n, n_chosen)


@given(start=st.integers(0, 50), width=st.integers(0, 30))
@settings(max_examples=60)
def test_few_are_spread_over_tokens_with_the_window(start: int, width: int) -> None:
    end = start + width
    chosen = choose_few(TOKENS, (start, end))
    assert {0, len(TOKENS) - 1, start, end} <= set(chosen)
    assert 17 <= len(chosen) <= 20
    assert np.diff(TOKENS[chosen]).max() < 0.13 * TOKENS[-1]
    assert choose_few(TOKENS[:7], None) == list(range(7))
