"""The in-context learning score: how much better the model predicts late in the context than early.

`loss_T[t]` is the loss, in nats, of predicting token index t + 1 from tokens 0..t, where token 0 is BOS. All scores
are late minus early: negative is better.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

SAYS_NOTHING = 0.125
"""Standard error, nats, above which a score says nothing: two are the distance of the paper's score before its change
from that after it."""


class IclPositions(NamedTuple):
    """Token indexes that the scores compare; windows are inclusive."""

    early: int
    late: int
    early_window: tuple[int, int]
    late_window: tuple[int, int]


def icl_positions(n_ctx: int) -> IclPositions:
    """Token indexes 50 and 500 in a context of 512 or more; the same fractions of a shorter one.

    Source: Olsson et al. 2022, "in-context learning score" (50th and 500th token of 512). Whether the paper counts
    from 0 or 1 is not disclosed; here token 0 is BOS. The windows are ours, since single positions are noisy.
    """
    n = min(n_ctx, 512)

    def scaled(index: int) -> int:
        return round(index / 512 * n)

    # Half up: Python's round takes 12.5 to the even 12.
    early, late = (int(index / 512 * n + 0.5) for index in (50, 500))
    early, late = max(4, early), min(max(5, late), n_ctx)
    early = min(early, late - 1) if late > 1 else 1
    return IclPositions(
        early=max(early, 1),
        late=late,
        early_window=(max(1, scaled(40)), max(1, scaled(60))),
        late_window=(max(1, scaled(450)), max(1, scaled(511))),
    )


def icl_score(loss: Float[np.ndarray, "*S T"]) -> Any:
    """Loss at the late token minus loss at the early one, nats: an array [*S], for a single curve a float.

    Zero for a model that ignores its context, on text that is as hard to predict late as early: most is not, and the
    score of a table of bigrams is what the text itself does. About -0.4 for the paper's models after the phase change.
    Source: Olsson et al. 2022, definition of the in-context learning score.
    """
    positions = icl_positions(loss.shape[-1])
    return _plain(loss[..., positions.late - 1] - loss[..., positions.early - 1])


def icl_windowed(loss: Float[np.ndarray, "*S T"]) -> Any:
    """As `icl_score`, with the mean over a window in place of each single position. Ours; never mixed with it."""
    positions = icl_positions(loss.shape[-1])
    early, late = (loss[..., a - 1 : b].mean(axis=-1) for a, b in (positions.early_window, positions.late_window))
    return _plain(late - early)


def _plain(score: Any) -> Any:
    return float(score) if np.ndim(score) == 0 else score
