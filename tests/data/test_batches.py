"""Prefetched batches against rows asked for directly."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from icl_jax.data import read_batches, row_ids
from icl_jax.read_ahead import ReadAhead
from tests.waiting import LAST_RESORT_S, wait_until


class NumberedRows:
    """Row i is i, i + 1, ...; fails at row ``fail_at``."""

    n_ctx = 3

    def __init__(self, n_rows: int | None = 17, fail_at: int = -1) -> None:
        self.n_rows = n_rows
        self._fail_at = fail_at
        self.n_calls = 0

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        self.n_calls += 1
        if self._fail_at in ids:
            raise OSError(f"row {self._fail_at} is gone")
        return (ids[:, None] + np.arange(self.n_ctx + 1)).astype(np.int32)


def batches(corpus: NumberedRows, **kwargs: object) -> ReadAhead[NDArray[np.int32]]:
    return read_batches(corpus, **({"seed": 3, "batch_size": 6} | kwargs))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "icl_jax-batches"]


@settings(max_examples=20)
@given(start_step=st.integers(0, 20), n_parts=st.sampled_from([1, 2, 3, 6]), n_rows=st.sampled_from([17, 4, None]))
def test_parts_of_all_processes_make_up_the_batch(start_step: int, n_parts: int, n_rows: int | None) -> None:
    corpus = NumberedRows(n_rows)
    size = 6 // n_parts
    parts = [batches(corpus, start_step=start_step, local=slice(i * size, (i + 1) * size)) for i in range(n_parts)]
    try:
        for step in range(start_step, start_step + 4):
            expected = corpus.rows(row_ids(3, step, 6, n_rows))
            np.testing.assert_array_equal(np.concatenate([next(part) for part in parts]), expected)
    finally:
        for part in parts:
            part.close()


def test_an_exception_reaches_the_consumer_after_the_batches_before_it() -> None:
    with batches(NumberedRows(None, fail_at=13)) as made:
        assert next(made)[0, 0] == 0
        assert next(made)[0, 0] == 6
        for _ in range(2):
            with pytest.raises(OSError, match="row 13 is gone"):
                next(made)


def test_no_more_than_depth_batches_wait() -> None:
    corpus = NumberedRows(None)
    with batches(corpus, depth=2):
        wait_until(lambda: corpus.n_calls == 3)  # two wait in the queue, one for room in it
        time.sleep(0.3)
        assert corpus.n_calls == 3


def test_a_closed_iterator_is_at_its_end() -> None:
    made = batches(NumberedRows())
    next(made)
    made.close()
    made.close()
    assert list(made) == []
    assert list(made) == []


def test_close_wakes_a_consumer_that_waits() -> None:
    class Slow(NumberedRows):
        def rows(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
            time.sleep(0.2)
            return super().rows(ids)

    made = batches(Slow())
    taken: list[NDArray[np.int32]] = []
    consumer = threading.Thread(target=lambda: taken.extend(made))
    consumer.start()
    time.sleep(0.05)
    made.close()
    consumer.join(LAST_RESORT_S)
    assert not consumer.is_alive()


@pytest.mark.parametrize("bad", [{"start_step": -1}, {"batch_size": 0}, {"depth": 0}])
def test_impossible_arguments_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        batches(NumberedRows(), **bad)
