"""A checksum of an array that its parts add up to: each process takes that of its shards, however the array was cut."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

_AT_ONCE = 2**14


def checksum(values: Any, start: Sequence[Any], shape: Sequence[int], xp: ModuleType = np) -> Any:
    """uint32: the sum, modulo 2**32, of every element's bits times an odd weight of its place in the whole array.

    values: the part of an array of `shape` that begins at `start`, of types of up to 4 bytes; `xp` is numpy or
    jax.numpy. Parts that make up the whole add up to the checksum of the whole. One changed element always shows; other
    damage goes unseen once in 2**32.
    """
    place = xp.zeros((), xp.uint32)
    for axis, (first, n_all) in enumerate(zip(start, shape, strict=True)):
        along = [1] * len(shape)
        along[axis] = -1
        index = xp.asarray(first).astype(xp.uint32) + xp.arange(values.shape[axis], dtype=xp.uint32)
        place = place * np.uint32(n_all % 2**32) + index.reshape(along)
    weight = place * np.uint32(0x9E3779B1) | np.uint32(1)
    bits = values.view(f"uint{8 * values.dtype.itemsize}").astype(xp.uint32)
    return xp.sum(bits * weight, dtype=xp.uint32)


def checksum_of(array: np.ndarray) -> np.uint32:
    """That of a whole array in memory, by parts that a processor's cache holds: several times as fast."""
    array = np.asarray(array)
    flat = np.ascontiguousarray(array).reshape(-1)  # a place is one in the flat array
    starts = range(0, flat.size, _AT_ONCE)
    return np.uint32(sum(int(checksum(flat[i : i + _AT_ONCE], (i,), flat.shape)) for i in starts) % 2**32)
