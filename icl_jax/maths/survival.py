"""When things happen that may not have happened yet: survival curves and their quantiles, of right-censored times.

A run without a change says that its change comes later than its end, not that there is none: it is censored there.
Source: Kaplan and Meier 1958; intervals: Greenwood's variance on the scale log(-log S), 95 %.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Real
from scipy.special import ndtri

Events = Float[np.ndarray, " event"]
_LEVEL = 0.95
_N_DRAWS = 2000


class Survival(NamedTuple):
    """The share of members that have not changed yet, [0, 1], from each time on at which one changes.

    `low` and `high`: its 95 % interval. Source: Kaplan and Meier 1958.
    """

    times: Events
    share: Events
    low: Events
    high: Events


def kaplan_meier(times: Real[np.ndarray, " member"], has_changed: Bool[np.ndarray, " member"]) -> Survival:
    """`times`: of each member's change, or where it was last seen without one."""
    n = len(times)
    events, changed, at_risk = _counts(times, has_changed)
    share = np.cumprod(1 - changed / at_risk)
    is_inside = (share > 0) & (share < 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.cumsum(changed / (at_risk * (at_risk - changed)))) / np.abs(np.log(share))
        reach = np.exp(ndtri((1 + _LEVEL) / 2) * spread)
        low, high = share**reach, share ** (1 / reach)
    # None is left: Clopper and Pearson's upper end of 0 of n.
    low, high = np.where(is_inside, low, 0.0), np.where(is_inside, high, 1 - ((1 - _LEVEL) / 2) ** (1 / max(n, 1)))
    return Survival(events, share, low, high)


def share_left(times: Real[np.ndarray, " member"], has_changed: Bool[np.ndarray, " member"]) -> tuple[Events, Events]:
    """`times` and `share` of `kaplan_meier`, without the interval."""
    events, changed, at_risk = _counts(times, has_changed)
    return events, np.cumprod(1 - changed / at_risk)


def _counts(times: np.ndarray, has_changed: np.ndarray) -> tuple[Events, Events, Events]:
    """Times at which members change, how many do, and how many had not before."""
    events, changed = np.unique(times[has_changed], return_counts=True)
    at_risk = len(times) - np.searchsorted(np.sort(times), events)
    return events.astype(np.float64), changed.astype(np.float64), at_risk.astype(np.float64)


def quantiles(
    times: Real[np.ndarray, "*draw member"], has_changed: Bool[np.ndarray, "*draw member"], of: Float[np.ndarray, " q"]
) -> Float[np.ndarray, "*draw q"]:
    """Times by which these parts have changed, by Kaplan and Meier; inf where so many have not been seen to."""
    n = times.shape[-1]
    order = np.lexsort((~has_changed, times), axis=-1)  # of equal times, changes come before losses of sight
    times, has_changed = (np.take_along_axis(np.asarray(values), order, -1) for values in (times, has_changed))
    share = np.cumprod(np.where(has_changed, 1 - 1 / np.arange(n, 0, -1), 1.0), axis=-1)
    # The first event at which no more are left; a rounding error is no member.
    is_there = (1 - share[..., None, :] >= of[:, None] - 1e-9) & has_changed[..., None, :]
    first = np.argmax(is_there, axis=-1)
    found = np.take_along_axis(times.astype(np.float64), first.reshape(*times.shape[:-1], -1), -1).reshape(first.shape)
    return np.where(is_there.any(axis=-1), found, np.inf)


def quantile_bands(
    times: Real[np.ndarray, " member"], has_changed: Bool[np.ndarray, " member"], of: Float[np.ndarray, " q"], *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " q"], Float[np.ndarray, " q"], Float[np.ndarray, " q"]]:  # fmt: skip
    """`quantiles` and the ends of their 95 % bootstrap intervals (2,000 draws of members)."""
    pick = np.random.default_rng(seed).integers(0, len(times), (_N_DRAWS, len(times)))
    drawn = quantiles(times[pick], has_changed[pick], of)
    ends = ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2)
    low, high = np.quantile(drawn, ends, axis=0, method="inverted_cdf")  # between a time and inf is no number
    return quantiles(times, has_changed, of), low, high
