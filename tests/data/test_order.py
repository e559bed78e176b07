"""The order of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.data import row_ids
from icl_jax.data.streams import Stream, random_stream

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, n_rows=st.integers(1, 40), batch_size=st.integers(1, 90), first_step=st.integers(0, 9))
def test_the_stream_of_ids_depends_on_the_position_alone(
    seed: int, n_rows: int, batch_size: int, first_step: int
) -> None:
    one_by_one = [
        row_ids(seed, position, 1, n_rows)[0]
        for position in range(first_step * batch_size, (first_step + 2) * batch_size)
    ]
    batches = [row_ids(seed, step, batch_size, n_rows) for step in (first_step, first_step + 1)]
    np.testing.assert_array_equal(np.concatenate(batches), one_by_one)


@given(seed=SEEDS, n_rows=st.integers(1, 40), batch_size=st.integers(1, 90))
def test_every_epoch_visits_each_row_once(seed: int, n_rows: int, batch_size: int) -> None:
    n_steps = -(-3 * n_rows // batch_size)
    ids = np.concatenate([row_ids(seed, step, batch_size, n_rows) for step in range(n_steps)])
    for epoch in range(3):
        in_epoch = ids[epoch * n_rows : (epoch + 1) * n_rows]
        np.testing.assert_array_equal(np.sort(in_epoch), np.arange(n_rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [row_ids(seed, epoch, 101, 101) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({order.tobytes() for order in orders}) == len(orders)
    assert not any(np.array_equal(order, np.arange(101)) for order in orders)


def test_known_order() -> None:
    assert row_ids(3, 1, 8, 1000).tolist() == [657, 14, 57, 832, 68, 735, 996, 867]


def test_a_corpus_without_end_gives_new_ids_for_ever() -> None:
    np.testing.assert_array_equal(row_ids(7, 5, 3, None), [15, 16, 17])
    assert row_ids(7, 5, 3, None).dtype == row_ids(7, 5, 3, 4).dtype == np.int64


@pytest.mark.parametrize("bad", [(0, -1, 2, 3), (0, 0, 0, 3), (0, 0, 2, 0)])
def test_impossible_arguments_are_refused(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        row_ids(*bad)


def test_streams_do_not_meet() -> None:
    draws = [random_stream(seed, s, i).random(4).tobytes() for seed in (0, 1) for s in Stream for i in range(3)]
    assert len(set(draws)) == len(draws)
    with pytest.raises(ValueError, match="2\\*\\*56"):
        random_stream(0, Stream.ORDER, 2**56)
