"""Which law times follow: fits by maximum likelihood to right-censored times, AIC, and a test of each fit.

Laws, two parameters each: an exponential after a delay, log-normal, gamma, Weibull, normal. Test: the largest distance
between the Kaplan-Meier curve and the law, among as many draws from the law that was fitted, censored and fitted as the
times were (parametric bootstrap; a table of Kolmogorov and Smirnov would not know of the fit). The delay of the
exponential is the first time, so that its likelihood is not regular, and its AIC flatters it by about one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy import optimize, special

from icl_jax.maths.survival import share_left

FEWEST = 8
"""Changes that there must be for a law to be fitted."""
_STEEPEST = 1e9
"""Of shapes of the Weibull law: where all changes are the last times, none is the likeliest."""
Times = Float[np.ndarray, " member"]


@dataclass(frozen=True, slots=True)
class Law:
    """Densities of a law with two parameters."""

    parameters: tuple[str, str]
    log_pdf: Callable[[Times, float, float], Times]
    log_sf: Callable[[Times, float, float], Times]
    draw: Callable[[np.random.Generator, int, float, float], Times]
    first_guess: Callable[[Times], tuple[float, float]]
    is_positive: tuple[bool, bool] = (True, True)


def _shape_of(times: Times) -> tuple[float, float]:
    """Shape and scale of the gamma law by its moments."""
    shape = float(np.mean(times) ** 2 / max(np.var(times), 1e-12))
    return shape, float(np.mean(times)) / shape


def _normal_log_pdf(x: Times, mean: float, sd: float) -> Times:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


LAWS: dict[str, Law] = {
    "shifted exponential": Law(
        ("delay", "mean after it"),
        lambda t, delay, mean: np.where(t >= delay, -(t - delay) / mean - np.log(mean), -np.inf),
        lambda t, delay, mean: -np.maximum(t - delay, 0) / mean,
        lambda rng, n, delay, mean: delay + rng.exponential(mean, n),
        lambda t: (float(t.min()), float(max(np.mean(t) - t.min(), 1e-9))),
    ),
    "log-normal": Law(
        ("mean of the log", "its standard deviation"),
        lambda t, mean, sd: _normal_log_pdf(np.log(t), mean, sd) - np.log(t),
        lambda t, mean, sd: special.log_ndtr((mean - np.log(t)) / sd),
        lambda rng, n, mean, sd: rng.lognormal(mean, sd, n),
        lambda t: (float(np.mean(np.log(t))), float(max(np.std(np.log(t)), 1e-9))),
        (False, True),
    ),
    "gamma": Law(
        ("shape", "scale"),
        lambda t, shape, scale: (shape - 1) * np.log(t) - t / scale - special.gammaln(shape) - shape * np.log(scale),
        lambda t, shape, scale: np.log(np.maximum(special.gammaincc(shape, t / scale), 1e-300)),
        lambda rng, n, shape, scale: rng.gamma(shape, scale, n),
        _shape_of,
    ),
    "Weibull": Law(
        ("shape", "scale"),
        lambda t, shape, scale: np.log(shape / scale) + (shape - 1) * np.log(t / scale) - (t / scale) ** shape,
        lambda t, shape, scale: -((t / scale) ** shape),
        lambda rng, n, shape, scale: scale * rng.weibull(shape, n),
        lambda t: (float(1.28 / max(np.std(np.log(t)), 1e-9)), float(np.mean(t)) * 1.1),
    ),
    "normal": Law(
        ("mean", "standard deviation"),
        _normal_log_pdf,
        lambda t, mean, sd: special.log_ndtr((mean - t) / sd),
        lambda rng, n, mean, sd: rng.normal(mean, sd, n),
        lambda t: (float(np.mean(t)), float(max(np.std(t), 1e-9))),
        (False, True),
    ),
}


class Fit(NamedTuple):
    """A law fitted to times."""

    parameters: tuple[float, float]
    log_likelihood: float
    aic: float
    distance: float
    """The largest between the law and the Kaplan-Meier curve, a share of members."""


def fit(law: str, times: Real[np.ndarray, " member"], has_changed: Bool[np.ndarray, " member"]) -> Fit:
    """The likeliest parameters. `times`: all above 0, of changes, or of where a member was last seen without one."""
    of = LAWS[law]
    unit = float(np.mean(times))
    scaled = np.asarray(times, np.float64) / unit
    seen, unseen = scaled[has_changed], scaled[~has_changed]

    def log_likelihood(one: float, other: float) -> float:
        return float(of.log_pdf(seen, one, other).sum() + of.log_sf(unseen, one, other).sum())

    if law == "shifted exponential":
        delay = float(seen.min())
        parameters = delay, float(np.maximum(scaled - delay, 0).sum() / len(seen))
        parameters = delay, max(parameters[1], 1e-12)
    elif not len(unseen) and law in ("normal", "log-normal"):
        parameters = of.first_guess(seen)
    elif law == "Weibull" and np.ptp(scaled):
        parameters = _weibull(seen, scaled)
    elif law == "gamma" and not len(unseen) and np.ptp(seen):
        parameters = _gamma(seen)
    else:
        parameters = _climb(of, log_likelihood, of.first_guess(seen))
    value = log_likelihood(*parameters) - len(seen) * np.log(unit)
    parameters = _in_unit(law, parameters, unit)
    return Fit(parameters, value, 4 - 2 * value, _distance(of, parameters, times, has_changed))


def _weibull(seen: Float[np.ndarray, " event"], times: Times) -> tuple[float, float]:
    """Where the slope of the likelihood along the shape is 0: the scale follows from the shape, and the slope falls."""
    longest = float(times.max())
    logs, mean = np.log(times), float(np.mean(np.log(seen)))

    def slope(shape: float) -> float:
        weights = np.exp(shape * (logs - np.log(longest)))
        return 1 / shape + mean - float(weights @ logs / weights.sum())

    low = high = 1.0
    while slope(low) < 0:
        low /= 2
    while slope(high) > 0 and high < _STEEPEST:
        high *= 2
    shape = float(optimize.brentq(slope, low, high, xtol=1e-12)) if slope(high) < 0 else high
    return shape, longest * float(np.sum((times / longest) ** shape) / len(seen)) ** (1 / shape)


def _gamma(times: Times) -> tuple[float, float]:
    """log(shape) - digamma(shape) = log(mean) - mean(log), by Newton's steps. Source: Minka 2002."""
    mean = float(np.mean(times))
    gap = np.log(mean) - float(np.mean(np.log(times)))
    shape = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(5):
        off = np.log(shape) - special.digamma(shape) - gap
        shape = 1 / (1 / shape + off / (shape**2 * (1 / shape - special.polygamma(1, shape))))
    return float(shape), mean / float(shape)


def _climb(of: Law, log_likelihood: Callable[[float, float], float], guess: tuple[float, float]) -> tuple[float, float]:
    def back(free: Float[np.ndarray, "2"]) -> tuple[float, float]:
        one, other = (
            float(np.exp(min(x, 50.0))) if positive else float(x)
            for x, positive in zip(free, of.is_positive, strict=True)
        )
        return one, other

    def height(free: Float[np.ndarray, "2"]) -> float:
        value = log_likelihood(*back(free))
        return -value if np.isfinite(value) else 1e300

    start = [np.log(x) if positive else x for x, positive in zip(guess, of.is_positive, strict=True)]
    with np.errstate(all="ignore"):
        found = optimize.minimize(height, start, method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-7})
    return back(found.x)


def _in_unit(law: str, parameters: tuple[float, float], unit: float) -> tuple[float, float]:
    one, other = parameters
    if law == "log-normal":
        return one + float(np.log(unit)), other
    return (one, other * unit) if law in ("gamma", "Weibull") else (one * unit, other * unit)


def _distance(of: Law, parameters: tuple[float, float], times: np.ndarray, has_changed: np.ndarray) -> float:
    """Both just before and at each change: between them the curve is flat."""
    events, share = share_left(times, has_changed)
    law = np.exp(of.log_sf(events, *parameters))
    before = np.concatenate([[1.0], share[:-1]])
    return float(np.max(np.maximum(np.abs(share - law), np.abs(before - law))))


def fit_p_value(
    law: str, found: Fit, times: Real[np.ndarray, " member"], has_changed: Bool[np.ndarray, " member"], *,
    n_draws: int = 400, seed: int = 0,
) -> float:  # fmt: skip
    """Chance of so large a distance were the times of this law."""
    rng = np.random.default_rng(seed)
    ends = np.where(has_changed, np.inf, times)
    # Members are lost from sight where they were; those that changed would have been seen to the latest of all ends.
    ends = np.where(np.isfinite(ends), ends, np.max(times[~has_changed], initial=-np.inf))
    ends = np.where(np.isfinite(ends), ends, np.inf)
    n_farther, n_tried = 0, 0
    for _ in range(n_draws):
        drawn = LAWS[law].draw(rng, len(times), *found.parameters)
        drawn = np.maximum(drawn, np.min(times) * 1e-6)  # a normal law has times below 0
        is_seen = drawn <= ends
        if is_seen.sum() < 2:
            continue
        n_tried += 1
        n_farther += fit(law, np.minimum(drawn, ends), is_seen).distance >= found.distance
    return (1 + n_farther) / (1 + n_tried)
