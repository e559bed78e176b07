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
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from icl_jax.maths.step_fit import FLOOR
from icl_jax.maths.step_search import Schedule, Search, Step, cells_of, find_steps, smooth_columns

FEWEST = 8
"""Points that a curve must have for a change to be told from none."""
# Parts of what the curve does, and of the step's size.
_LEAST_SHARE = 0.05
_LEAST_EXCESS = 0.15
# Times the noise.
_LEAST_OVER_NOISE = 2.0
# Times the noise; and the median of the second differences of noise of 1, which straight parts have none of.
_LEAST_TURN = 5.0
_MEDIAN_BEND = 0.6745 * 6**0.5
# What the step must gain beside all convex curves: 4 in 100 even falls with a corner have a step that does.
_CONVEX_GAIN = 6.0


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
    width_interval: tuple[float, float] = (np.nan, np.nan)
    """NaN of what an earlier version has measured."""

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
    width_interval: Float[np.ndarray, "... K 2"]

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
    smooth, cells, unit = smooth_columns(u, schedule), cells_of(u), (u - u[0]) / (u[-1] - u[0])
    relative = None if noise is None else max(noise / span, FLOOR)
    signs = (direction,) if direction else (-1, 1)
    searches = [Search(unit, -sign * y / span, smooth, cells, relative) for sign in signs]
    firsts = [search.best_cell([]) for search in searches]
    best = int(np.argmin([fitted.rss.min() for _, fitted in firsts]))
    steps, p_value = find_steps(searches[best], *firsts[best], alpha, most)
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
    search = Search((u - u[0]) / (u[-1] - u[0]), -direction * y / span, smooth_columns(u, schedule), cells_of(u), None)
    steps: list[Step] = []
    for change in found:
        start, end = ((x - u[0]) / (u[-1] - u[0]) for x in (change.start, change.end))
        is_known = np.isfinite(end) and start > 0
        end = end if np.isfinite(end) else 2 - start
        step = Step((start + end) / 2, max(end - start, 1e-4), np.empty((len(u), 0)))
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
    """First point of the curve that goes up: its lowest early one, if it lies lower than the very first by a fifth.

    And by more than noise puts it: what lies flat before a change is needed.
    """
    lowest = int(np.argmin(y[u <= u[0] + (u[-1] - u[0]) / 4]))
    noise = float(np.median(np.abs(np.diff(y, 2)))) / _MEDIAN_BEND
    return lowest if y[0] - y[lowest] > max(0.2 * np.ptp(y), _LEAST_TURN * noise) else 0


def _worth_the_name(search: Search, steps: list[Step], scale: float, u: np.ndarray, least: float) -> list[Change]:
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
        *ends, width = posterior.ends()
        start, end = (np.where(x > 1, np.inf, u[0] + np.maximum(x, 0) * (u[-1] - u[0])).tolist() for x in ends)
        width = np.where(np.isinf(end), np.inf, width * (u[-1] - u[0])).tolist()
        share = size / whole
        found.append(
            Change(
                start[1], end[1], float(size[1] * scale), float(share[1]),
                (start[0], start[2]), (end[0], end[2]), _in_order(size * scale), _in_order(share),
                (width[0], width[2]),
            )
        )  # fmt: skip
    return found


def _in_order(quantiles: np.ndarray) -> tuple[float, float]:
    low, high = sorted((float(quantiles[0]), float(quantiles[2])))
    return low, high
