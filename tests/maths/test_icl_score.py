"""The in-context learning score: which positions it compares, and its sign."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.maths.icl_score import IclPositions, icl_positions, icl_score, icl_windowed


@pytest.mark.parametrize("n_ctx", [512, 513, 8192])
def test_the_papers_positions(n_ctx: int) -> None:
    assert icl_positions(n_ctx) == IclPositions(50, 500, (40, 60), (450, 511))


@pytest.mark.parametrize(
    ("n_ctx", "expected"),
    [
        (256, IclPositions(25, 250, (20, 30), (225, 256))),
        (128, IclPositions(13, 125, (10, 15), (112, 128))),
        (64, IclPositions(6, 63, (5, 8), (56, 64))),
        (8, IclPositions(4, 8, (1, 1), (7, 8))),
        (5, IclPositions(4, 5, (1, 1), (4, 5))),
        (4, IclPositions(3, 4, (1, 1), (4, 4))),
        (3, IclPositions(2, 3, (1, 1), (3, 3))),
        (2, IclPositions(1, 2, (1, 1), (2, 2))),
    ],
)
def test_the_same_fractions_of_a_shorter_context(n_ctx: int, expected: IclPositions) -> None:
    assert icl_positions(n_ctx) == expected


@given(st.integers(2, 2000))
def test_positions_are_in_range_and_early_comes_before_late(n_ctx: int) -> None:
    positions = icl_positions(n_ctx)
    assert 1 <= positions.early < positions.late <= n_ctx
    assert 1 <= positions.early_window[0] <= positions.early_window[1]
    assert positions.early_window[1] < positions.late_window[0] <= positions.late_window[1] <= n_ctx
    assert positions.late_window[0] <= positions.late <= positions.late_window[1]


@pytest.mark.parametrize("n_ctx", [2, 3, 5, 64, 512, 700])
def test_the_loss_at_t_is_that_of_token_t_plus_1(n_ctx: int) -> None:
    """With the loss of predicting token i equal to i, scores are differences of token indexes."""
    loss_T = np.arange(1, n_ctx + 1, dtype=np.float32)
    positions = icl_positions(n_ctx)
    assert icl_score(loss_T) == positions.late - positions.early
    centre = [np.mean(window) for window in (positions.early_window, positions.late_window)]
    assert icl_windowed(loss_T) == pytest.approx(centre[1] - centre[0])


def test_known_answers() -> None:
    loss_T = np.full(512, 4.0, np.float32)
    assert icl_score(loss_T) == icl_windowed(loss_T) == 0.0
    loss_T[499] = 3.6
    assert icl_score(loss_T) == pytest.approx(-0.4)
    assert icl_windowed(loss_T) == pytest.approx(-0.4 / 62, rel=1e-3)
    loss_T[49] = 3.0
    assert icl_score(loss_T) == pytest.approx(0.6)
    assert isinstance(icl_score(loss_T), float)
