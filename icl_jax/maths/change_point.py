"""Where a curve of training changes abruptly, if it does: place, width and size of each change, tested, with intervals.

Null hypothesis: a smooth learning curve, which is convex: a constant, a line and exponential decays that all fall, in
tokens and in the cumulative learning rate (in which a warm-up is no bend), and a part that falls as the learning rate
does. Power laws, exponentials and lines are such sums. A change is what they are not: a stretch where the curve gets
steeper and then flat again. Its shape is the logistic step ``size / (1 + exp(-(tokens - place) / scale))``, and another
smooth curve may begin with it. Start and end are where 10 % and 90 % of the step are done, as of a rise time.

Test: ``n * log(RSS without / RSS with)``, the largest over all places and widths; its tail under the null is from
simulation. Noise is AR(1) in tokens, of a size that is estimated, and no less than 1 % of the curve's range. Besides, a
change has to be worth the name: `least` of it, a twentieth of what the curve does, twice the noise, and 15 % of the
step must be beyond what a smooth curve can follow, for every learning curve starts a little late. And no convex curve
at all may follow it, with corners or a rise: a score that falls evenly and then stays has no change. Intervals: 90 % of
the posterior over place and width, on a grid, with the rest of the fit at its best. Calibration: docs/change-point.md,
made by benchmarks/change_points.py.

Sources: mixtures of exponentials are the completely monotone functions (Bernstein 1928), what a sum of relaxing modes
gives; the part that follows the learning rate: Tissue et al. 2024 (arXiv:2408.11029). The test is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from icl_jax.maths.step_fit import FLOOR, ColumnFit, StepFits, logistic

FEWEST = 8
"""Points that a curve must have for a change to be told from none."""
# Rates of the decays: so far apart that none lies between them that two cannot follow, up to one that is over by the
# second point.
_RATE_RATIO = 1.6
_FASTEST = 8.0
_N_WIDTHS = 7
_N_TRIED = 16
# Parts of what the curve does, and of the step's size.
_LEAST_SHARE = 0.05
_LEAST_EXCESS = 0.15
# Times the noise.
_LEAST_OVER_NOISE = 2.0
# What the step must gain beside all convex curves: 4 in 100 even falls with a corner have a step that does.
_CONVEX_GAIN = 6.0
_N_CORNERS = 32
_QUANTILES = np.array([0.05, 0.5, 0.95])
# The statistic's tail: log p = (a - statistic) / b, met by straight lines of 16 to 400 points; flat, exponential and
# power-law curves have a lighter one. `python -m benchmarks.change_points --null` shows it.
_TAIL_A, _TAIL_B = 2.2, 2.6
# What a parameter must gain, in the same unit, for a curve to be said to begin with a step.
_TAIL_GAIN = 10.0

Schedule: TypeAlias = tuple[Real[np.ndarray, " step"], Float[np.ndarray, " step"]]
"""Tokens and learning rate at each step of the record, or at any points in order that show the schedule."""


@dataclass(frozen=True, slots=True)
class Change:
    """One abrupt change; intervals are 90 %."""

    start: float
    """Tokens at which 10 % of it are done; the first point's where they were done before."""
    end: float
    """Tokens at which 90 % are done; inf where the run ends before."""
    size: float
    """What it does to the curve within the run, signed, in the curve's unit."""
    share: float
    """`size` as a part of what the curve does from its first point to its last."""
    start_interval: tuple[float, float]
    end_interval: tuple[float, float]
    size_interval: tuple[float, float]
    share_interval: tuple[float, float]

    @property
    def is_open(self) -> bool:
        """Still going on where the run ends."""
        return bool(np.isinf(self.end))

    @property
    def width(self) -> float:
        """Tokens from start to end; inf where it is still going on."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class ChangePoints:
    """The changes of each curve in the order of training. K: the most that one has; NaN where another has fewer."""

    n_changes: Int[np.ndarray, "..."]
    """0: none was found."""
    p_value: Float[np.ndarray, "..."]
    """Of the hypothesis that the whole curve is smooth; NaN for a curve of fewer than eight points."""
    start: Float[np.ndarray, "... K"]
    end: Float[np.ndarray, "... K"]
    size: Float[np.ndarray, "... K"]
    share: Float[np.ndarray, "... K"]
    start_interval: Float[np.ndarray, "... K 2"]
    end_interval: Float[np.ndarray, "... K 2"]
    size_interval: Float[np.ndarray, "... K 2"]
    share_interval: Float[np.ndarray, "... K 2"]

    @property
    def is_open(self) -> Bool[np.ndarray, "... K"]:
        """Still going on where the run ends."""
        return np.isinf(self.end)


def change_points(
    tokens: Real[np.ndarray, " S"],
    curves: Float[np.ndarray, "... S"],
    *,
    schedule: Schedule | None = None,
    direction: int = 0,
    least: float = 0.0,
    noise: float | None = None,
    alpha: float = 0.03,
    most: int = 4,
) -> ChangePoints:
    """`changes` of each curve, as arrays."""
    shape = curves.shape[:-1]
    found = [
        changes(
            tokens, curves[at], schedule=schedule, direction=direction, least=least, noise=noise, alpha=alpha, most=most
        )
        for at in np.ndindex(shape)
    ]  # fmt: skip
    k = max((len(of_one) for of_one, _ in found), default=0)
    arrays: dict[str, np.ndarray] = {}
    for name in (field.name for field in fields(Change)):
        unit = np.full((len(found), k, 2), np.nan) if name.endswith("interval") else np.full((len(found), k), np.nan)
        for row, (of_one, _) in zip(unit, found, strict=True):
            for i, change in enumerate(of_one):
                row[i] = getattr(change, name)
        arrays[name] = unit.reshape(*shape, *unit.shape[1:])
    counts = np.array([len(of_one) for of_one, _ in found], np.int64).reshape(shape)
    return ChangePoints(n_changes=counts, p_value=np.array([p for _, p in found], np.float64).reshape(shape), **arrays)


def changes(
    tokens: Real[np.ndarray, " S"],
    curve: Float[np.ndarray, " S"],
    *,
    schedule: Schedule | None = None,
    direction: int = 0,
    least: float = 0.0,
    noise: float | None = None,
    alpha: float = 0.03,
    most: int = 4,
) -> tuple[list[Change], float]:
    """The abrupt changes of one curve in the order of training, and the p-value of a curve that is smooth throughout.

    `tokens` must increase; points where the curve is NaN are left out, and with fewer than eight there is nothing to
    test: no change, p-value NaN. `direction`: -1 for a curve that falls as it learns (a loss, the ICL score), 1 for one
    that rises (a probability, a head score), 0 for what fits better. With a direction, a curve that first goes the
    other way is read from its turn on, if that is in the first quarter of the run. `least`: the smallest size that
    matters, in the curve's unit. `noise`: standard deviation from point to point, where it is known; the error that
    neighbouring points share (held-out rows that are the same) is not meant. `alpha`: chance of a first change in a
    smooth curve. `most`: changes to look for. Raises ValueError if tokens do not increase.
    """
    u, y = _read(tokens, curve, direction)
    if len(y) < FEWEST:
        return [], float("nan")
    if (span := float(np.ptp(y))) == 0:
        return [], 1.0
    smooth, cells, unit = _smooth_columns(u, schedule), _cells(u), (u - u[0]) / (u[-1] - u[0])
    relative = None if noise is None else max(noise / span, FLOOR)
    signs = (direction,) if direction else (-1, 1)
    searches = [_Search(unit, -sign * y / span, smooth, cells, relative) for sign in signs]
    firsts = [search.best_cell([]) for search in searches]
    best = int(np.argmin([fitted.rss.min() for _, fitted in firsts]))
    steps, p_value = _find_steps(searches[best], *firsts[best], alpha, most)
    return _worth_the_name(searches[best], steps, signs[best] * span, u, least), p_value


@dataclass(frozen=True, slots=True)
class Explained:
    """A curve as the detector reads it, without the points that it leaves out."""

    tokens: Real[np.ndarray, " R"]
    smooth: Float[np.ndarray, " R"]
    """The best smooth curve: the null hypothesis."""
    fitted: Float[np.ndarray, " R"]
    """The best of a smooth curve and the changes; without any it is `smooth`."""


def explained(
    tokens: Real[np.ndarray, " S"], curve: Float[np.ndarray, " S"], found: Sequence[Change], *,
    schedule: Schedule | None = None, direction: int,
) -> Explained | None:  # fmt: skip
    """What `changes` has fitted, for a picture: least squares beside changes that are known, direction -1 or 1.

    None for a curve of fewer than eight points.
    """
    u, y = _read(tokens, curve, direction)
    if len(y) < FEWEST:
        return None
    span = float(np.ptp(y)) or 1.0
    search = _Search((u - u[0]) / (u[-1] - u[0]), -direction * y / span, _smooth_columns(u, schedule), _cells(u), None)
    steps: list[_Step] = []
    for change in found:
        start, end = ((x - u[0]) / (u[-1] - u[0]) for x in (change.start, change.end))
        is_known = np.isfinite(end) and start > 0
        end = end if np.isfinite(end) else 2 - start
        step = _Step((start + end) / 2, max(end - start, 1e-4), np.empty((len(u), 0)))
        steps.append(step if is_known else search.moved(step, steps))
    steps = [search.with_tail(step, [other for other in steps if other is not step]) for step in steps]
    smooth, fitted = (y.mean() - direction * span * search.fitted(some) for some in ([], steps))
    return Explained(u, smooth, fitted)


def _read(tokens: np.ndarray, curve: np.ndarray, direction: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that are known, with a direction from the curve's turn on."""
    is_known = np.isfinite(curve)
    u, y = np.asarray(tokens, np.float64)[is_known], np.asarray(curve, np.float64)[is_known]
    if np.any(np.diff(u) <= 0):
        raise ValueError("tokens do not increase")
    if direction and len(y) >= FEWEST:
        first = _turn(u, direction * y)
        u, y = u[first:], y[first:]
    return u, y


def _turn(u: np.ndarray, y: np.ndarray) -> int:
    """First point of the curve that goes up: its lowest early one, if it lies lower than the very first by a fifth."""
    lowest = int(np.argmin(y[u <= u[0] + (u[-1] - u[0]) / 4]))
    return lowest if y[0] - y[lowest] > 0.2 * np.ptp(y) else 0


def _worth_the_name(search: "_Search", steps: list["_Step"], scale: float, u: np.ndarray, least: float) -> list[Change]:
    """The steps that are large enough, measured. `scale`: the curve's unit and its sign."""
    found = []
    curve = search.fitted(steps)
    whole, reach = curve[0] - curve[-1], np.ptp(curve)
    for step in steps:
        others = [other for other in steps if other is not step]
        posterior = search.around(step, others)
        size = posterior.sizes()
        smallest = max(least / abs(scale), _LEAST_SHARE * reach, _LEAST_OVER_NOISE * posterior.fitted.noise)
        excess = np.abs(curve - search.fitted(others)).max()
        if size[1] < smallest or excess < _LEAST_EXCESS * size[1] or search.convex_gain(step, steps) < _CONVEX_GAIN:
            continue
        start, end = (
            np.where(x > 1, np.inf, u[0] + np.maximum(x, 0) * (u[-1] - u[0])).tolist() for x in posterior.ends()
        )
        share = size / whole
        found.append(
            Change(
                start[1], end[1], float(size[1] * scale), float(share[1]),
                (start[0], start[2]), (end[0], end[2]), _in_order(size * scale), _in_order(share),
            )
        )  # fmt: skip
    return found


def _in_order(quantiles: np.ndarray) -> tuple[float, float]:
    low, high = sorted((float(quantiles[0]), float(quantiles[2])))
    return low, high


# Below, tokens run from 0 to 1, and the curve falls by learning and has a range of 1.


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    place: float
    width: float
    tail: np.ndarray
    """Columns of the smooth curve that begins with it; none where it needs none."""


def _smooth_columns(tokens: np.ndarray, schedule: Schedule | None) -> np.ndarray:
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


def _cells(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _tail_columns(u: np.ndarray, step: _Step) -> np.ndarray:
    """What may begin with a step: convex falls, and a rise."""
    after = np.maximum(u - step.place, 0)[:, None]
    return np.concatenate([np.exp(-after / (step.width * np.array([1.0, 3.0, 9.0]))) - 1, after], axis=1)


@dataclass(slots=True)
class _Search:
    """One curve, what it may be made of, and the noise that is assumed."""

    u: np.ndarray
    y: np.ndarray
    smooth: np.ndarray
    cells: tuple[np.ndarray, np.ndarray]
    noise: float | None
    correlation: float = 0.0

    def shapes(self, place: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
        return -logistic(self.u, np.atleast_1d(place), np.atleast_1d(width))

    def columns(self, steps: Sequence[_Step], *more: np.ndarray) -> np.ndarray:
        of_steps = [column for step in steps for column in (self.shapes(step.place, step.width), step.tail)]
        return np.concatenate([self.smooth, *of_steps, *more], axis=1)

    def fit(self, steps: Sequence[_Step], *more: np.ndarray) -> ColumnFit:
        return ColumnFit(self.u, self.y, self.columns(steps, *more), self.correlation, self.noise)

    def fitted(self, steps: Sequence[_Step]) -> np.ndarray:
        """The curve of the best fit, up to a constant."""
        from scipy.optimize import nnls

        columns = self.columns(steps)
        middle = columns - columns.mean(axis=0)
        return middle @ nnls(middle, self.y - self.y.mean(), maxiter=2000)[0]

    def convex_gain(self, step: _Step, steps: Sequence[_Step]) -> float:
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
        convex = np.concatenate([_smooth_columns(self.u, None), bends, self.u[:, None]], axis=1)
        search = replace(self, y=y, smooth=convex)
        alone = search.fit([])
        return alone.gain(alone.without(), search.fit([step]).without())

    def best_cell(self, others: Sequence[_Step]) -> tuple[float, StepFits]:
        """Statistic and fits of one step more, over the coarse grid."""
        fit = self.fit(others)
        fitted = fit.with_each(self.shapes(*self.cells), _N_TRIED)
        return fit.gain(fit.without(), float(fitted.rss.min())), fitted

    def step_of(self, fitted: StepFits) -> _Step:
        places, widths = self.cells
        return _Step(float(places[fitted.best]), float(widths[fitted.best]), np.empty((len(self.u), 0)))

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

    def around(self, step: _Step, others: Sequence[_Step]) -> "_Posterior":
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
        return _Posterior(places, log_widths, log_p.reshape(shape), fitted)

    def moved(self, step: _Step, others: Sequence[_Step]) -> _Step:
        """The step where it is likeliest beside the others."""
        posterior = self.around(step, others)
        i, j = np.unravel_index(np.argmax(posterior.log_p), posterior.log_p.shape)
        return replace(step, place=float(posterior.places[i]), width=float(np.exp(posterior.log_widths[j])))

    def with_tail(self, step: _Step, others: Sequence[_Step]) -> _Step:
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
class _Posterior:
    """Of place and log width."""

    places: np.ndarray
    log_widths: np.ndarray
    log_p: np.ndarray
    fitted: StepFits

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """5 %, 50 %, 95 % of start and end."""
        from scipy.ndimage import zoom

        fine = zoom(np.maximum(self.log_p, -50), 4, order=1)
        place = np.linspace(self.places[0], self.places[-1], fine.shape[0])[:, None]
        half = np.exp(np.linspace(self.log_widths[0], self.log_widths[-1], fine.shape[1])) / 2
        p = np.exp(fine).ravel()
        return _quantiles((place - half).ravel(), p), _quantiles((place + half).ravel(), p)

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


def _find_steps(
    search: _Search, statistic: float, fitted: StepFits, alpha: float, most: int
) -> tuple[list[_Step], float]:
    """Steps in the order of training, one more as long as it is significant, and the p-value of the first."""
    search.estimate_correlation(fitted)
    if search.correlation:
        statistic, fitted = search.best_cell([])
    p_value = _p_value(statistic)
    steps: list[_Step] = []
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
