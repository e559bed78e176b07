"""Where in training the in-context learning score falls."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Real

# Both ours: the paper chooses its band "based on the derivative of the in-context score" and gives no rule.
_SMOOTHING = 5
_BAND = 0.25


class Fall(NamedTuple):
    """The stretch of training in which the score falls fastest; indexes into the arrays that were given."""

    start: int
    end: int
    drop: float
    """Score at the end minus score at the start, nats; negative when in-context learning forms."""


def smooth(values: Float[np.ndarray, " S"], width: int, *, is_symmetric: bool = False) -> Float[np.ndarray, " S"]:
    """Centred mean over up to `width` values, fewer at the ends.

    There, as many as there are on the shorter side if `is_symmetric`: a straight line then stays one and a convex curve
    convex, but the ends are hardly smoothed.
    """
    index = np.arange(len(values))
    before = np.minimum(width // 2, index)
    after = np.minimum(width // 2, index[::-1])
    if is_symmetric:
        before = after = np.minimum(before, after)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    first, last = index - before, index + after + 1
    return (total[last] - total[first]) / (last - first)


def steepest_fall(tokens: Real[np.ndarray, " S"], icl: Float[np.ndarray, " S"]) -> Fall:
    """The contiguous stretch around the steepest fall of the smoothed score, down to a quarter of that steepness.

    `tokens` must increase. A stretch is found in any curve that falls somewhere, with or without an abrupt change.
    Raises ValueError for fewer than three points.
    Source: Olsson et al. 2022, the band of Argument 1, chosen by the derivative of the score; the rule is ours.
    """
    if len(tokens) < 3:
        raise ValueError(f"{len(tokens)} points: a derivative needs at least 3")
    smoothed = smooth(np.asarray(icl, np.float64), _SMOOTHING, is_symmetric=True)
    slope = np.gradient(smoothed, np.asarray(tokens, np.float64))
    steepest = int(np.argmin(slope))
    is_falling = slope <= _BAND * slope[steepest] if slope[steepest] < 0 else np.arange(len(slope)) == steepest
    start = end = steepest
    while start > 0 and is_falling[start - 1]:
        start -= 1
    while end < len(tokens) - 1 and is_falling[end + 1]:
        end += 1
    return Fall(start, end, float(smoothed[end] - smoothed[start]))
