"""The search for steps in a curve beside smooth learning curves, which `icl_jax.maths.change_point` makes changes of.

Tokens run from 0 to 1, and the curve falls by learning and has a range of 1. What is fitted, the test and its sources
are told there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Real

from icl_jax.maths.step_fit import FLOOR, ColumnFit, StepFits, logistic

# Rates of the decays: so far apart that none lies between them that two cannot follow, up to one that is over by the
# second point.
_RATE_RATIO = 1.6
_FASTEST = 8.0
_N_WIDTHS = 7
_N_TRIED = 16
_N_CORNERS = 32
_QUANTILES = np.array([0.05, 0.5, 0.95])
# The statistic's tail: log p = (a - statistic) / b, met by straight lines of 16 to 400 points; flat, exponential and
# power-law curves have a lighter one. `python -m benchmarks.change_points --null` shows it.
_TAIL_A, _TAIL_B = 2.2, 2.6
# What a parameter must gain, in the same unit, for a curve to be said to begin with a step.
_TAIL_GAIN = 10.0

Schedule: TypeAlias = tuple[Real[np.ndarray, " step"], Float[np.ndarray, " step"]]
"""Tokens and learning rate at each step of the record, or at any points in order that show the schedule."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A logistic step, as it is looked for."""

    place: float
    width: float
    tail: np.ndarray
    """Columns of the smooth curve that begins with it; none where it needs none."""


def smooth_columns(tokens: np.ndarray, schedule: Schedule | None) -> np.ndarray:
    """Convex columns that fall: with a constant, and coefficients of 0 or more, the null hypothesis."""

    def falls(clock: np.ndarray) -> np.ndarray:
        clock = (clock - clock[0]) / (clock[-1] - clock[0])
        gaps = np.diff(clock)
        fastest = _FASTEST / max(gaps[gaps > 0].min(), 1e-3)
        rates = np.geomspace(1, fastest, 2 + int(np.log(fastest) / np.log(_RATE_RATIO)))
        return np.concatenate([-clock[:, None], np.exp(-clock[:, None] * rates)], axis=1)

    if schedule is None:
        return falls(tokens)
    at, rate = (np.asarray(x, np.float64) for x in schedule)
    spent = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(at))])
    peak = int(np.argmax(rate))
    cooled = np.interp(tokens, at[peak:], rate[peak:] / rate[peak])
    return np.concatenate([falls(tokens), falls(np.interp(tokens, at, spent)), cooled[:, None]], axis=1)


def cells_of(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and widths of the coarse search: places half a width apart, widths of two spacings and more."""
    u = (tokens - tokens[0]) / (tokens[-1] - tokens[0])
    gaps, middles = np.diff(u), (u[1:] + u[:-1]) / 2
    cells = []
    for width in np.geomspace(max(2 * np.quantile(gaps, 0.1), 0.008), 0.7, _N_WIDTHS):
        place = np.arange(0, 1 + width / 2, width / 2)
        place = place[np.interp(place, middles, gaps) <= 1.5 * width]
        cells.append((place, np.full(len(place), width)))
    places, widths = zip(*cells, strict=True)
    return np.concatenate(places), np.concatenate(widths)


def _tail_columns(u: np.ndarray, step: Step) -> np.ndarray:
    """What may begin with a step: convex falls, and a rise."""
    after = np.maximum(u - step.place, 0)[:, None]
    return np.concatenate([np.exp(-after / (step.width * np.array([1.0, 3.0, 9.0]))) - 1, after], axis=1)


@dataclass(slots=True)
class Search:
    """One curve, what it may be made of, and the noise that is assumed."""

    u: np.ndarray
    y: np.ndarray
    smooth: np.ndarray
    cells: tuple[np.ndarray, np.ndarray]
    noise: float | None
    correlation: float = 0.0

    def shapes(self, place: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
        return -logistic(self.u, np.atleast_1d(place), np.atleast_1d(width))

    def columns(self, steps: Sequence[Step], *more: np.ndarray) -> np.ndarray:
        of_steps = [column for step in steps for column in (self.shapes(step.place, step.width), step.tail)]
        return np.concatenate([self.smooth, *of_steps, *more], axis=1)

    def fit(self, steps: Sequence[Step], *more: np.ndarray) -> ColumnFit:
        return ColumnFit(self.u, self.y, self.columns(steps, *more), self.correlation, self.noise)

    def fitted(self, steps: Sequence[Step]) -> np.ndarray:
        """The curve of the best fit, up to a constant."""
        from scipy.optimize import nnls

        columns = self.columns(steps)
        middle = columns - columns.mean(axis=0)
        return middle @ nnls(middle, self.y - self.y.mean(), maxiter=2000)[0]

    def convex_gain(self, step: Step, steps: Sequence[Step]) -> float:
        """The statistic of one of `steps` beside all convex curves, the others as they are fitted.

        Fitted anew, a step that the run cuts off bends as far as a convex curve can take back.
        """
        from scipy.optimize import nnls

        columns = self.columns(steps)
        middle = columns - columns.mean(axis=0)
        x = nnls(middle, self.y - self.y.mean(), maxiter=2000)[0]
        of_smooth = self.smooth.shape[1]
        belongs = np.repeat([other is not step for other in steps], [1 + other.tail.shape[1] for other in steps])
        y = self.y - columns[:, of_smooth:][:, belongs] @ x[of_smooth:][belongs]
        corners = np.linspace(0, 1, _N_CORNERS + 2)[1:-1]
        bends = np.maximum(corners - self.u[:, None], 0)
        convex = np.concatenate([smooth_columns(self.u, None), bends, self.u[:, None]], axis=1)
        search = replace(self, y=y, smooth=convex)
        alone = search.fit([])
        return alone.gain(alone.without(), search.fit([step]).without())

    def best_cell(self, others: Sequence[Step]) -> tuple[float, StepFits]:
        """Statistic and fits of one step more, over the coarse grid."""
        fit = self.fit(others)
        fitted = fit.with_each(self.shapes(*self.cells), _N_TRIED)
        return fit.gain(fit.without(), float(fitted.rss.min())), fitted

    def step_of(self, fitted: StepFits) -> Step:
        places, widths = self.cells
        return Step(float(places[fitted.best]), float(widths[fitted.best]), np.empty((len(self.u), 0)))

    def estimate_correlation(self, fitted: StepFits) -> None:
        """Of the noise that the best step leaves, with what a rich fit takes from it given back.

        A step that is left in it looks like correlation; the differences over one and two points, less the largest, do
        not see that.
        """
        residual, n = fitted.residual(), len(self.u)
        of_neighbours = float(residual[1:] @ residual[:-1] / (residual @ residual + n * FLOOR**2))
        if of_neighbours > 1.3 / np.sqrt(n):
            squares = (np.sort((residual[k:] - residual[:-k]) ** 2) for k in (1, 2))
            one, two = (float(square[: int(0.85 * len(square))].mean()) + FLOOR**2 for square in squares)
            most = min(of_neighbours + 1 - fitted.n_left / n, 0.95)
            self.correlation = float(np.clip(two / one - 1, 0, most))

    def around(self, step: Step, others: Sequence[Step]) -> "Posterior":
        """Where a step can be and how wide: a grid that closes in on what is likely."""
        fit = self.fit(others, step.tail)
        middles = (self.u[1:] + self.u[:-1]) / 2
        narrowest = np.log(max(0.5 * float(np.interp(step.place, middles, np.diff(self.u))), 1e-4))
        low = np.array([step.place - step.width, np.log(step.width / 4)])
        high = np.array([step.place + step.width, np.log(step.width * 4)])
        for shape in ((7, 6), (9, 7), (13, 9)):
            low = np.maximum(low, [-0.2, narrowest])
            high = np.minimum(np.maximum(high, [-np.inf, narrowest + 0.5]), [1.5, np.log(1.5)])
            places, log_widths = (np.linspace(*ends) for ends in zip(low, high, shape, strict=True))
            place, log_width = (axis.ravel() for axis in np.meshgrid(places, log_widths, indexing="ij"))
            width = np.exp(log_width)
            fitted = fit.with_each(self.shapes(place, width))
            first, last = logistic(np.array([0.0, 1.0]), place, width)
            # The size is integrated out, its error is the volume; the prior of the width lies halfway between uniform
            # and uniform in its logarithm; and the run has seen some of the step.
            log_p = fitted.log_likelihood() + np.log(fitted.size_errors() * np.maximum(last - first, 1e-12))
            log_p += log_width / 2
            log_p[(place - width / 2 > 1) | (place + width / 2 < 0)] = -np.inf
            log_p -= log_p.max()
            near = log_p > -7
            spacing = np.array([places[1] - places[0], log_widths[1] - log_widths[0]])
            low = np.array([place[near].min(), log_width[near].min()]) - spacing
            high = np.array([place[near].max(), log_width[near].max()]) + spacing
        return Posterior(places, log_widths, log_p.reshape(shape), fitted)

    def moved(self, step: Step, others: Sequence[Step]) -> Step:
        """The step where it is likeliest beside the others."""
        posterior = self.around(step, others)
        i, j = np.unravel_index(np.argmax(posterior.log_p), posterior.log_p.shape)
        return replace(step, place=float(posterior.places[i]), width=float(np.exp(posterior.log_widths[j])))

    def with_tail(self, step: Step, others: Sequence[Step]) -> Step:
        """With the smooth curve that begins with it, where one does."""
        if step.tail.shape[1]:
            return step
        tailed = replace(step, tail=_tail_columns(self.u, step))
        plain = self.fit([*others, step])
        if plain.gain(plain.without(), self.fit([*others, tailed]).without()) < _TAIL_GAIN:
            return step
        moved = self.moved(tailed, others)
        return replace(moved, tail=_tail_columns(self.u, moved))


@dataclass(frozen=True, slots=True)
class Posterior:
    """Of place and log width."""

    places: np.ndarray
    log_widths: np.ndarray
    log_p: np.ndarray
    fitted: StepFits

    def ends(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """5 %, 50 %, 95 % of start, end and width."""
        from scipy.ndimage import zoom

        fine = zoom(np.maximum(self.log_p, -50), 4, order=1)
        place = np.linspace(self.places[0], self.places[-1], fine.shape[0])[:, None]
        half = np.exp(np.linspace(self.log_widths[0], self.log_widths[-1], fine.shape[1])) / 2
        p = np.exp(fine).ravel()
        width = np.broadcast_to(2 * half, fine.shape)
        start, end, width = (_quantiles(x.ravel(), p) for x in (place - half, place + half, width))
        return start, end, width

    def sizes(self) -> np.ndarray:
        """5 %, 50 %, 95 % of what the step does within the run."""
        from scipy.special import ndtri

        log_p = self.log_p.ravel()
        keep = log_p > -5
        place, width = np.meshgrid(self.places, np.exp(self.log_widths), indexing="ij")
        first, last = logistic(np.array([0.0, 1.0]), place.ravel()[keep], width.ravel()[keep])
        error = self.fitted.noise * self.fitted.size_errors()[keep]
        z = ndtri((np.arange(15) + 0.5) / 15)
        values = (self.fitted.x[keep, -1, None] + error[:, None] * z) * (last - first)[:, None]
        return _quantiles(values.ravel(), np.repeat(np.exp(log_p[keep]), len(z)))


def _quantiles(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return np.interp(_QUANTILES * total[-1], total - weights[order] / 2, values[order])


def _p_value(statistic: float) -> float:
    return float(min(1.0, np.exp((_TAIL_A - statistic) / _TAIL_B)))


def find_steps(search: Search, statistic: float, fitted: StepFits, alpha: float, most: int) -> tuple[list[Step], float]:
    """Steps in the order of training, one more as long as it is significant, and the p-value of the first."""
    search.estimate_correlation(fitted)
    if search.correlation:
        statistic, fitted = search.best_cell([])
    p_value = _p_value(statistic)
    steps: list[Step] = []
    while _p_value(statistic) <= alpha and len(steps) < most:
        trial = [*steps, search.moved(search.step_of(fitted), steps)]
        if steps:  # each beside the others
            for _ in range(2):
                for i, step in enumerate(trial):
                    trial[i] = search.moved(step, trial[:i] + trial[i + 1 :])
        # Two that run into one another are the shape of one.
        if any(abs(a.place - b.place) < 0.7 * (a.width + b.width) for a, b in combinations(trial, 2)):
            break
        steps = [search.with_tail(step, trial[:i] + trial[i + 1 :]) for i, step in enumerate(trial)]
        if len(steps) < most:
            statistic, fitted = search.best_cell(steps)
    return sorted(steps, key=lambda step: step.place), p_value
