"""The change-point detector on curves whose truth is known, and on three real runs."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import change_points as benchmark
from icl_jax.maths.change_point import change_points, changes, explained
from icl_jax.maths.steepest_fall import steepest_fall

END = 5_120_000
# 1,250 steps of 4,096 tokens: warm-up over 100 steps, then a cosine.
STEPS = np.arange(1250)
RATE = np.where(STEPS < 100, (STEPS + 1) / 100, 0.1 + 0.9 * (1 + np.cos(np.pi * (STEPS - 100) / 1149)) / 2)
SCHEDULE = (4096 * STEPS, RATE)

# Windowed ICL score of repeats-1l, repeats-2l and repeats-1l-smeared (30 snapshots, 512 held-out rows).
TOKENS = np.array([
    0, 24576, 49152, 73728, 106496, 155648, 217088, 307200, 442368, 565248, 716800, 868352, 1073152, 1302528, 1503232,
    1687552, 1892352, 2150400, 2355200, 2613248, 2867200, 3072000, 3321856, 3571712, 3837952, 4096000, 4349952, 4554752,
    4812800, 5120000,
])  # fmt: skip
ICL = {
    "one layer": [
        -0.007, -0.007, -0.007, -0.006, -0.005, -0.016, -0.045, -0.105, -0.208, -0.266, -0.292, -0.302, -0.305, -0.317,
        -0.328, -0.316, -0.322, -0.334, -0.344, -0.347, -0.351, -0.344, -0.347, -0.351, -0.353, -0.349, -0.356, -0.35,
        -0.354, -0.355,
    ],
    "two layers": [
        -0.007, -0.008, -0.007, -0.008, -0.021, -0.05, -0.073, -0.115, -0.187, -0.22, -0.25, -0.264, -0.282, -0.394,
        -0.648, -0.864, -1.006, -1.112, -1.154, -1.211, -1.221, -1.231, -1.268, -1.294, -1.284, -1.31, -1.335, -1.34,
        -1.355, -1.369,
    ],
    "smeared keys": [
        -0.007, -0.007, -0.007, -0.006, -0.005, -0.016, -0.053, -0.293, -1.183, -1.484, -1.556, -1.6, -1.611, -1.622,
        -1.647, -1.636, -1.649, -1.67, -1.67, -1.676, -1.675, -1.678, -1.68, -1.684, -1.681, -1.684, -1.685, -1.683,
        -1.686, -1.685,
    ],
}  # fmt: skip


def noise(n: int, seed: int, sd: float = 0.05) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=sd, size=n)


def step(u: np.ndarray, start: float, end: float) -> np.ndarray:
    """From 0 to 1; 10 % at start, 90 % at end."""
    return 1 / (1 + 9 ** -((2 * u - start - end) / (end - start)))


def spent(u: np.ndarray) -> np.ndarray:
    """Cumulative learning rate, 1 at the end."""
    total = np.concatenate([[0.0], np.cumsum((RATE[1:] + RATE[:-1]) / 2)])
    return np.interp(u * SCHEDULE[0][-1], SCHEDULE[0], total / total[-1])


SMOOTH = {
    "flat": np.zeros_like,
    "line": lambda u: -u,
    "power law": lambda u: (1 + 40 * u) ** -0.6,
    "exponential": lambda u: np.exp(-12 * u),
    "exponential under the schedule": lambda u: np.exp(-15 * spent(u)),
}


@pytest.mark.parametrize("kind", SMOOTH)
@pytest.mark.parametrize("sd", [0, 0.02, 0.3])
def test_a_smooth_curve_has_none(kind: str, sd: float) -> None:
    for n in (16, 60, 170):
        u = np.linspace(0, 1, n)
        curves = np.stack([SMOOTH[kind](u) + noise(n, seed, sd) for seed in range(5)])
        found = change_points(u * END, curves, schedule=SCHEDULE, direction=-1, alpha=0.005)
        assert found.n_changes.sum() == 0


def test_the_p_value_is_that_of_straight_lines() -> None:
    u = np.linspace(0, 1, 60)
    curves = np.stack([noise(60, seed, 0.2) - u for seed in range(150)])
    p = change_points(u * END, curves, direction=-1, most=1).p_value
    for level in (0.05, 0.1, 0.2):
        assert level / 3 < np.mean(p <= level) < 1.7 * level


def test_decays_of_any_rate_are_smooth() -> None:
    # Those that are over by the second point, and those of a rate between two that are tried.
    for n in (60, 250):
        u = np.linspace(0, 1, n)
        falls = [np.exp(-18 * spent(u)), np.exp(-33 * spent(u)), (1 + 400 * u) ** -0.6, (1 + 400 * u) ** -1.5]
        curves = np.stack([fall + noise(n, seed, 0.01) for seed, fall in enumerate(falls)])
        assert change_points(u * END, curves, schedule=SCHEDULE, direction=-1).p_value.min() > 0.1


def test_a_warm_up_is_a_bend_unless_the_schedule_is_known() -> None:
    u = np.linspace(0, 1, 120)
    curve = np.exp(-40 * spent(u))
    assert changes(u * END, curve, schedule=SCHEDULE, direction=-1)[1] > 0.2
    assert changes(u * END, curve, direction=-1)[1] < 1e-6


def test_noise_that_wanders_is_not_a_change() -> None:
    n = 100
    curves = np.stack([noise(n, seed) for seed in range(60)])
    for i in range(1, n):
        curves[:, i] += 0.7 * curves[:, i - 1]
    found = change_points(np.linspace(0, END, n), curves, direction=-1)
    assert np.sum(found.n_changes > 0) <= 3


@pytest.mark.parametrize("n", [40, 170])
@pytest.mark.parametrize(("start", "end"), [(0.3, 0.36), (0.5, 0.7), (0.8, 0.9)])
def test_a_step_without_noise_is_where_it_is(n: int, start: float, end: float) -> None:
    u = np.linspace(0, 1, n)
    (found,), p_value = changes(u * END, 0.5 * np.exp(-8 * u) - 0.7 * step(u, start, end), direction=-1)
    assert p_value < 1e-6
    spacing = END / (n - 1)
    assert found.start == pytest.approx(start * END, abs=spacing)
    assert found.end == pytest.approx(end * END, abs=spacing)
    assert found.size == pytest.approx(-0.7, rel=0.05)
    assert found.share == pytest.approx(0.7 / 1.2, rel=0.05)
    assert found.start_interval[0] <= start * END <= found.start_interval[1]
    assert found.end_interval[0] <= end * END <= found.end_interval[1]
    assert found.size_interval[0] <= -0.7 <= found.size_interval[1]
    assert found.width_interval[0] <= (end - start) * END <= found.width_interval[1]


def test_intervals_are_as_wide_as_the_noise() -> None:
    u = np.linspace(0, 1, 120)
    curve = 0.3 * np.exp(-10 * u) - step(u, 0.4, 0.5)
    widths, hits = {}, 0
    for sd in (0.02, 0.1):
        found = change_points(u * END, np.stack([curve + noise(120, s, sd) for s in range(20)]), direction=-1)
        np.testing.assert_array_equal(found.n_changes, 1)
        widths[sd] = np.diff(found.start_interval[:, 0]).mean()
        low, high = found.start_interval[:, 0].T
        hits += np.sum((low <= 0.4 * END) & (high >= 0.4 * END))
    assert 3 < widths[0.1] / widths[0.02] < 8
    assert 32 <= hits <= 40


def test_intervals_are_those_of_least_squares() -> None:
    # Where the rest of the curve is flat, from the derivatives by constant, size, start and end.
    u, sd, at = np.linspace(0, 1, 200), 0.03, np.array([0.0, -1.0, 0.4, 0.5])
    eps = 1e-5 * np.eye(4)
    slopes = [
        np.subtract(*(x[0] + x[1] * step(u, x[2], x[3]) for x in (at + one, at - one))) / (2 * one.sum()) for one in eps
    ]
    error = sd * np.sqrt(np.diag(np.linalg.inv(np.stack(slopes) @ np.stack(slopes).T)))
    found = change_points(u * END, np.stack([-step(u, 0.4, 0.5) + noise(200, s, sd) for s in range(10)]), direction=-1)
    for interval, expected in zip(
        (found.size_interval, found.start_interval / END, found.end_interval / END), error[1:], strict=True
    ):
        assert 0.85 < np.median(np.diff(interval[:, 0])) / (2 * 1.645 * expected) < 2.2


def test_every_point_may_be_anywhere() -> None:
    # Snapshots by logarithm and then even, as a run's are.
    u = np.unique(np.concatenate([[0], np.geomspace(0.005, 1, 30), np.linspace(0, 1, 40)]))
    (found,), _ = changes(u * END, -step(u, 0.05, 0.1) + noise(len(u), 0, 0.03), direction=-1)
    assert found.start == pytest.approx(0.05 * END, abs=0.01 * END)
    assert found.end == pytest.approx(0.1 * END, abs=0.015 * END)


def test_a_step_within_the_warm_up_is_found() -> None:
    u = np.linspace(0, 1, 170)
    curve = 0.3 * np.exp(-15 * spent(u)) - step(u, 0.035, 0.07) + noise(170, 3, 0.05)
    (found,), _ = changes(u * END, curve, schedule=SCHEDULE, direction=-1)
    assert 0.02 < found.start / END < 0.05
    assert 0.055 < found.end / END < 0.09


def test_noise_before_a_step_is_no_turn() -> None:
    # What lies flat before it is what a step is told by; a score that first rises is read from there on all the same.
    u = np.linspace(0, 1, 50)
    for seed in range(20):
        curve = -step(u, 0.27, 0.31) + noise(50, seed, 0.2)
        read = explained(u * END, curve, [], direction=-1)
        assert read is not None
        assert len(read.tokens) == 50
    rise = explained(u * END, np.minimum(u, 0.1) * 10 - step(u, 0.27, 0.31) + noise(50, 0, 0.05), [], direction=-1)
    assert rise is not None
    assert rise.tokens[0] == pytest.approx(0.1 * END, abs=0.05 * END)


def test_no_test_does_better_than_the_benchmark_says() -> None:
    # 5 in 100 where the curve is convex itself; a step that is large and late is seen by whoever looks.
    run = benchmark.Run(np.linspace(0, 1e6, 40), 0.1)
    for clean, expected in ((5 * np.exp(-3 * run.u), 0.05), (np.maximum(3 - 6 * run.u, 0), 0.05)):
        assert benchmark.most_found(benchmark.Truth(run, clean, (), clean)) == pytest.approx(expected, abs=0.02)
    clean = -20 * step(run.u, 0.6, 0.65)
    assert benchmark.most_found(benchmark.Truth(run, clean, (), clean)) > 0.999


def test_two_steps_are_two_in_order() -> None:
    u = np.linspace(0, 1, 150)
    curve = 0.4 * np.exp(-10 * u) - 0.4 * step(u, 0.25, 0.3) - 0.9 * step(u, 0.6, 0.7) + noise(150, 1, 0.04)
    found, _ = changes(u * END, curve, direction=-1)
    assert [round(one.start / END, 1) for one in found] == [0.2, 0.6]
    assert [round(one.size, 1) for one in found] == [-0.4, -0.9]
    (only,), _ = changes(u * END, curve, direction=-1, most=1)
    assert only.end > only.start
    # The second, left in what the first does not explain, is not taken for noise that wanders.
    u = np.linspace(0, 1, 400)
    equal = -step(u, 0.24, 0.28) - step(u, 0.81, 0.84) + noise(400, 2, 0.1)
    assert len(changes(u * END, equal, direction=-1)[0]) == 2


def test_a_run_that_ends_inside_says_so() -> None:
    u = np.linspace(0, 1, 120)
    (found,), _ = changes(u * END, -step(u, 0.93, 1.07) + noise(120, 2, 0.03), direction=-1)
    assert found.is_open
    assert found.end == found.end_interval[1] == found.width == found.width_interval[1] == np.inf
    assert found.start == pytest.approx(0.93 * END, abs=0.03 * END)
    assert found.size == pytest.approx(-0.5, abs=0.1)  # what it has done, not what it would do
    assert 0.8 < found.share < 1.2


def test_a_curve_that_rises_is_one_that_falls_upside_down() -> None:
    u = np.linspace(0, 1, 80)
    curve = 0.9 * step(u, 0.4, 0.5) + noise(80, 4, 0.03)
    (up,), p_up = changes(u * END, curve, direction=1)
    (down,), p_down = changes(u * END, -curve, direction=-1)
    (either,), p_either = changes(u * END, curve)
    assert p_up == p_down == p_either
    assert up.size == -down.size == either.size
    assert up.share == down.share
    assert up.size_interval == tuple(-x for x in reversed(down.size_interval))
    assert changes(u * END, curve, direction=-1)[0] == []


def test_units_do_not_matter() -> None:
    u = np.linspace(0, 1, 80)
    curve = -step(u, 0.4, 0.5) + noise(80, 5, 0.05)
    (one,), p = changes(u * END, curve, direction=-1)
    (other,), q = changes(u * END * 1000 + 7, 3 + 20 * curve, direction=-1)
    assert q == pytest.approx(p)
    assert other.start == pytest.approx(one.start * 1000 + 7)
    assert other.size == pytest.approx(20 * one.size)
    assert other.share == pytest.approx(one.share)


def test_a_stack_of_curves_is_each_by_itself() -> None:
    u = np.linspace(0, 1, 60)
    curves = np.stack([noise(60, 6), -step(u, 0.3, 0.4) + noise(60, 7), np.full(60, np.nan)])
    curves = np.stack([curves, curves[::-1]])
    curves[0, 1, 20] = np.nan
    found = change_points(u * END, curves, direction=-1)
    np.testing.assert_array_equal(found.n_changes, [[0, 1, 0], [0, 1, 0]])
    assert found.start.shape == (2, 3, 1)
    assert found.start_interval.shape == (2, 3, 1, 2)
    assert np.isnan(found.start[0, 0, 0])
    np.testing.assert_array_equal(np.isnan(found.p_value), [[False, False, True], [True, False, False]])
    np.testing.assert_array_equal(found.is_open, np.zeros((2, 3, 1), bool))
    is_known = np.isfinite(curves[0, 1])
    (alone,), p_value = changes(u[is_known] * END, curves[0, 1, is_known], direction=-1)
    assert (found.start[0, 1, 0], found.end[0, 1, 0], found.p_value[0, 1]) == (alone.start, alone.end, p_value)
    assert change_points(u * END, curves[:0], direction=-1).n_changes.shape == (0, 3)


def test_what_is_too_small_to_matter_is_left_out() -> None:
    u = np.linspace(0, 1, 100)
    curve = -0.04 * step(u, 0.4, 0.5) + noise(100, 8, 0.001)
    assert len(changes(u * END, curve, direction=-1)[0]) == 1
    assert changes(u * END, curve, direction=-1, least=0.05)[0] == []


@pytest.mark.parametrize("rise", [0.0, 0.6])
def test_an_even_fall_that_stops_is_none(rise: float) -> None:
    # A corner is no sum of decays, so the p-value is small, but nothing gets steeper. As the ICL score of classes-iwl.
    u = np.linspace(0, 1, 60)
    for seed, place in enumerate((0.3, 0.5, 0.7)):
        curve = -np.minimum(u, place) / place + rise * np.maximum(u - place, 0) + noise(60, seed, 0.02)
        found, p_value = changes(u * END, curve, schedule=SCHEDULE, direction=-1)
        assert found == []
        assert rise or p_value < 0.03
    # With a step in the fall it is one, and so is a step that the run cuts off, beside another.
    (found,), _ = changes(u * END, -np.minimum(u, 0.5) / 0.5 - step(u, 0.3, 0.36) + noise(60, 3, 0.04), direction=-1)
    assert found.start == pytest.approx(0.3 * END, abs=0.03 * END)
    two, _ = changes(u * END, -step(u, 0.55, 0.7) - step(u, 0.95, 1.1) + noise(60, 4, 0.01), direction=-1)
    assert [one.is_open for one in two] == [False, True]


def test_what_is_less_than_twice_the_noise_is_left_out() -> None:
    u = np.linspace(0, 1, 400)
    curve = -step(u, 0.5, 0.52)
    for sd, n in ((0.3, 1), (0.7, 0)):
        found, p_value = changes(u * END, curve + noise(400, 5, sd), direction=-1)
        assert len(found) == n
        assert p_value < 1e-4


def test_known_noise_is_believed() -> None:
    u = np.linspace(0, 1, 60)
    curve = -step(u, 0.6, 0.65) + noise(60, 15, 0.05)
    (estimated,), _ = changes(u * END, curve, direction=-1)
    (known,), _ = changes(u * END, curve, direction=-1, noise=0.05)
    assert known.size == pytest.approx(estimated.size, abs=0.02)
    assert np.ptp(known.size_interval) == pytest.approx(np.ptp(estimated.size_interval), rel=0.3)
    assert changes(u * END, curve, direction=-1, noise=1.5)[0] == []


def test_a_turn_comes_before_what_is_learned() -> None:
    # The ICL score of text rises before it falls.
    u = np.linspace(0, 1, 60)
    curve = np.where(u < 0.1, 4 * u, 0.4 * np.exp(-5 * (u - 0.1))) + noise(60, 9, 0.01)
    assert changes(u * END, curve, direction=-1)[0] == []
    (found,), _ = changes(u * END, curve - 0.5 * step(u, 0.4, 0.5), direction=-1)
    assert found.start == pytest.approx(0.4 * END, abs=0.03 * END)


def test_real_runs_are_told_apart() -> None:
    curves = np.array(list(ICL.values()))
    # The steepest fall is in all of them, with most of the run's change within.
    assert all(steepest_fall(TOKENS, curve).drop < -0.25 for curve in curves)
    found = change_points(TOKENS, curves, schedule=SCHEDULE, direction=-1)
    np.testing.assert_array_equal(found.n_changes, [0, 1, 1])
    np.testing.assert_allclose(found.start[1:, 0] / 1e6, [1.2, 0.28], atol=0.05)
    np.testing.assert_allclose(found.end[1:, 0] / 1e6, [1.9, 0.49], atol=0.05)
    np.testing.assert_allclose(found.size[1:, 0], [-0.79, -1.4], atol=0.05)


def test_few_points_and_none_that_differ() -> None:
    few = changes(np.arange(7), np.arange(7.0))
    assert few[0] == []
    assert np.isnan(few[1])
    assert changes(np.arange(20), np.ones(20)) == ([], 1.0)
    with pytest.raises(ValueError, match="increase"):
        changes(np.zeros(20), np.arange(20.0))


def test_the_calibration_counts_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "NULLS", {"linear": benchmark.NULLS["linear"]})
    monkeypatch.setattr(benchmark, "N_TOGETHER", 2)
    monkeypatch.setattr(benchmark, "STEPS", {name: benchmark.STEPS[name] for name in ("step, no noise",)})
    benchmark.main(benchmark.Args(curves=8, out=tmp_path / "found.json"))
    said = capsys.readouterr().out
    assert "| linear | 0.0 |" in said
    assert "| 2 smooth curves together, any of them | 0.0 | 0.0 |" in said
    assert "| step, no noise | 100.0 |  | 0.0 |" in said
    assert (tmp_path / "found.json").exists()
    # A truth elsewhere is not found.
    monkeypatch.setattr(benchmark, "detect", lambda truth, _: change_points(truth.run.tokens, 0 * truth.curve))
    found = benchmark.of_steps(4, 0, 0.03, "")
    assert found["step, no noise"]["found"] == 0


@pytest.mark.parametrize("end", [0.55, 1.08])
def test_the_fit_of_a_picture_follows_what_was_found(end: float) -> None:
    u = np.linspace(0, 1, 60)
    curve = np.exp(-6 * u) - step(u, end - 0.15, end) + noise(60, 3, 0.01)
    curve[:2] = np.nan, 1.0
    found, _ = changes(u * END, curve, direction=-1)
    assert [change.is_open for change in found] == [end > 1]
    fit = explained(u * END, curve, found, direction=-1)
    assert fit is not None
    np.testing.assert_array_equal(fit.tokens, (u * END)[1:])
    beside, alone = (np.std(curve[1:] - y) for y in (fit.fitted, fit.smooth))
    assert beside < 0.013
    assert alone > 2.5 * beside
    same = explained(u * END, curve, [], direction=-1)
    assert same is not None
    np.testing.assert_array_equal(same.fitted, fit.smooth)
    assert explained(u[:7], curve[:7], [], direction=-1) is None
