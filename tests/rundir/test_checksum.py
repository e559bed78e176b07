"""Parts add up to the whole however it is cut, by NumPy and by JAX; any changed element shows."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from icl_jax.rundir.checksum import checksum, checksum_of

ARRAYS = st_numpy.arrays(
    st.sampled_from([np.float32, np.int32]), st_numpy.array_shapes(min_dims=0, max_dims=4, max_side=5)
)


@given(array=ARRAYS, data=st.data())
def test_parts_add_up_to_the_whole(array: np.ndarray, data: st.DataObject) -> None:
    whole = int(checksum_of(array))
    for axis, n in enumerate(array.shape):
        cut = data.draw(st.integers(0, n))
        first, second = np.split(array, [cut], axis=axis)
        start = [cut if i == axis else 0 for i in range(array.ndim)]
        parts = [checksum(first, [0] * array.ndim, array.shape), checksum(second, start, array.shape)]
        assert sum(map(int, parts)) % 2**32 == whole


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 5)])
def test_jax_and_numpy_agree(shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(3).normal(size=shape), np.float32)
    start = (0,) * array.ndim
    assert int(checksum(jnp.asarray(array), start, shape, jnp)) == int(checksum_of(array))


@given(array=ARRAYS.filter(lambda array: array.size > 0), data=st.data())
def test_any_changed_element_shows(array: np.ndarray, data: st.DataObject) -> None:
    changed = array.copy()
    bits = changed.view(np.uint32)
    place, flips = data.draw(st.integers(0, array.size - 1)), data.draw(st.integers(1, 2**32 - 1))
    bits.flat[place] ^= np.uint32(flips)
    assert checksum_of(changed) != checksum_of(array)


def test_equal_elements_in_other_places_show() -> None:
    array = np.arange(12, dtype=np.float32)
    assert checksum_of(array) != checksum_of(array[::-1].copy())
    assert checksum_of(array) != checksum_of(array.reshape(3, 4)[:, ::-1].copy())
