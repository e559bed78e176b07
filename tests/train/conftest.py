"""Compiled functions that the runs of a file share."""

from collections.abc import Iterator

import pytest

from tests.train.runs import compile_once


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        compile_once(patch)
        yield
