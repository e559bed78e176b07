"""Survival, laws and prediction against hand-made answers, SciPy, and draws whose law is known."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from icl_jax.maths.laws import LAWS, fit, fit_p_value
from icl_jax.maths.prediction import leave_one_out, rank_correlation
from icl_jax.maths.survival import kaplan_meier, quantile_bands, quantiles


def test_survival_by_hand() -> None:
    """Of six, one changes at 1, one is lost at 2, two change at 3 and one of the two left is lost at 3."""
    times, changed = np.array([3, 1, 2, 3, 3, 5]), np.array([True, True, False, True, False, True])
    found = kaplan_meier(times, changed)
    assert found.times.tolist() == [1, 3, 5]
    np.testing.assert_allclose(found.share, [5 / 6, 5 / 6 * 2 / 4, 0])
    assert (found.low <= found.share).all()
    assert (found.share <= found.high).all()
    assert found.high[-1] == pytest.approx(1 - 0.025 ** (1 / 6))
    got = quantiles(times, changed, np.array([0.1, 0.5, 0.9]))
    assert got.tolist() == [1, 3, 5]


def censored(rng: np.random.Generator, n: int, end: float) -> tuple[np.ndarray, np.ndarray]:
    times = rng.gamma(4.0, 1.0, n)
    return np.minimum(times, end), times <= end


def test_survival_as_scipy() -> None:
    times, changed = censored(np.random.default_rng(1), 60, 5.0)
    found = kaplan_meier(times, changed)
    theirs = stats.ecdf(stats.CensoredData(times[changed], right=times[~changed])).sf
    at = np.searchsorted(theirs.quantiles, found.times)
    np.testing.assert_allclose(found.share, theirs.probabilities[at])
    bounds = theirs.confidence_interval(method="log-log")
    for ours, bound in ((found.low, bounds.low), (found.high, bounds.high)):
        np.testing.assert_allclose(ours, bound.probabilities[at])


def test_quantiles_of_times_that_are_all_seen() -> None:
    times = np.random.default_rng(2).gamma(4.0, 1.0, 41)
    of = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    found = quantiles(times, np.ones(41, bool), of)
    np.testing.assert_allclose(found, np.quantile(times, of, method="inverted_cdf"))
    value, low, high = quantile_bands(times, np.ones(41, bool), of)
    assert np.array_equal(value, found)
    assert (low <= value).all()
    assert (value <= high).all()
    assert (low < high).all()
    # Of the median the interval is that between order statistics, which the binomial law gives: the 14th and 28th.
    order = np.sort(times)
    assert low[2] == pytest.approx(order[13], abs=0.25)
    assert high[2] == pytest.approx(order[27], abs=0.25)


def test_what_was_not_seen_has_no_quantile() -> None:
    times, changed = np.array([1.0, 2.0, 9.0, 9.0]), np.array([True, True, False, False])
    assert quantiles(times, changed, np.array([0.5, 0.75])).tolist() == [2, np.inf]
    value, low, high = quantile_bands(times, changed, np.array([0.5]))
    assert (value[0], low[0], high[0]) == (2, 1, np.inf)


THEIRS = {"log-normal": stats.lognorm, "gamma": stats.gamma, "Weibull": stats.weibull_min, "normal": stats.norm}


@pytest.mark.parametrize("law", THEIRS)
def test_fit_of_censored_times_as_scipy(law: str) -> None:
    times, changed = censored(np.random.default_rng(3), 80, 5.0)
    data = stats.CensoredData(times[changed], right=times[~changed])
    fixed = {} if law == "normal" else {"floc": 0}
    parameters = THEIRS[law].fit(data, **fixed)
    theirs = np.sum(THEIRS[law].logpdf(times[changed], *parameters))
    theirs += np.sum(THEIRS[law].logsf(times[~changed], *parameters))
    found = fit(law, times, changed)
    assert found.log_likelihood == pytest.approx(theirs, abs=1e-3)
    one, other = found.parameters
    same = {"log-normal": (other, 0, np.exp(one)), "gamma": (one, 0, other), "Weibull": (one, 0, other),
            "normal": (one, other)}[law]  # fmt: skip
    np.testing.assert_allclose(same, parameters, rtol=2e-3)
    assert found.aic == 4 - 2 * found.log_likelihood


@pytest.mark.parametrize("law", ["gamma", "Weibull"])
@pytest.mark.parametrize("n_before", [0, 3])
def test_changes_that_all_come_last_have_a_fit(law: str, n_before: int) -> None:
    times, changed = np.full(11, 4.0), np.arange(11) >= n_before
    times[~changed] = 2.0
    found = fit(law, times, changed)
    assert np.isfinite([*found.parameters, found.log_likelihood, found.distance]).all()


def test_a_delay_and_an_exponential() -> None:
    times, changed = np.array([3.0, 4.0, 6.0, 8.0]), np.array([True, True, True, False])
    found = fit("shifted exponential", times, changed)
    assert found.parameters == pytest.approx((3, 9 / 3))
    uncensored = fit("shifted exponential", times, np.ones(4, bool))
    assert uncensored.parameters == pytest.approx(stats.expon.fit(times))
    assert uncensored.log_likelihood == pytest.approx(np.sum(stats.expon.logpdf(times, *stats.expon.fit(times))))
    # 1 - exp(-t) is farthest from the steps before the last: at 8, from three quarters.
    assert uncensored.distance == pytest.approx(stats.kstest(times, "expon", (3, 2.25)).statistic)


@pytest.mark.parametrize(
    ("law", "draw"),
    [
        ("shifted exponential", lambda rng: 50 + rng.exponential(20.0, 100)),
        ("log-normal", lambda rng: rng.lognormal(3.0, 0.35, 100)),
        ("normal", lambda rng: rng.normal(100.0, 10.0, 100)),
    ],
)
def test_the_law_that_times_are_of(law: str, draw: Callable[[np.random.Generator], np.ndarray]) -> None:
    """It has the lowest AIC, and passes; another does not."""
    times = draw(np.random.default_rng(5))
    end = np.quantile(times, 0.9)
    seen, changed = np.minimum(times, end), times <= end
    fits = {name: fit(name, seen, changed) for name in LAWS}
    aic = {name: one.aic for name, one in fits.items()}
    assert aic[law] <= min(aic.values()) + 2
    assert fit_p_value(law, fits[law], seen, changed, n_draws=60) > 0.05
    other = "normal" if law == "shifted exponential" else "shifted exponential"
    assert fit_p_value(other, fits[other], seen, changed, n_draws=60) < 0.05


def test_correlation_as_scipy() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=40)
    y = 0.5 * x + rng.normal(size=40)
    found, theirs = rank_correlation(x, y), stats.spearmanr(x, y)
    assert found.rho == pytest.approx(theirs.statistic)
    assert found.p_value == pytest.approx(theirs.pvalue, rel=0.3)
    assert found.low < found.rho < found.high
    bounds = stats.bootstrap((x, y), lambda a, b: stats.spearmanr(a, b).statistic, paired=True, vectorized=False,
                             n_resamples=500, method="percentile", rng=rng).confidence_interval  # fmt: skip
    assert found.low == pytest.approx(bounds.low, abs=0.06)
    assert found.high == pytest.approx(bounds.high, abs=0.06)
    assert np.isnan(rank_correlation(x, np.ones(40))).all()


def test_what_can_be_predicted() -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(30, 3))
    y = 2 * x[:, 1] + 0.5 * rng.normal(size=30)
    found = leave_one_out(x, y)
    errors, of_mean = [], []
    for k in range(30):
        others = np.arange(30) != k
        design = np.column_stack([np.ones(29), x[others]])
        weights = np.linalg.lstsq(design, y[others])[0]
        errors.append(y[k] - np.concatenate([[1], x[k]]) @ weights)
        of_mean.append(y[k] - y[others].mean())
    assert found.r2 == pytest.approx(1 - np.sum(np.square(errors)) / np.sum(np.square(of_mean)))
    assert found.p_value == 1e-4
    noise = leave_one_out(x, rng.normal(size=30))
    assert noise.r2 < 0.2
    assert noise.p_value > 0.05
