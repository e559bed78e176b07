"""What is held out by construction: a hash without seed, so that no training row of any corpus has it."""

import numpy as np
from numpy.typing import NDArray

N_CLASSES = 4
"""A name's last syllable, a sum's second number and a foreign word each are of one of four classes; the hash of what
stands before says which of them is held out."""


def held_out_class(*parts: NDArray[np.integer] | int) -> NDArray[np.int64]:
    """Which class is held out after ``parts``, 0 .. N_CLASSES - 1: a hash without seed, the same in every corpus.

    Source: the finaliser of splitmix64 (Steele, Lea and Flood 2014), once per part.
    """
    mixed: NDArray[np.uint64] = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # 64-bit arithmetic wraps around
        for part in parts:
            mixed = mixed + np.asarray(part, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(mixed % np.uint64(N_CLASSES), np.int64)


def pick(
    order: NDArray[np.integer], n_taken: int, class_: NDArray[np.int64], is_held_out: bool
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """First of each row's random order, past the n_taken first, that is of the right split, and log of their number.

    Raises AssertionError if there is none, which lists long enough rule out.
    """
    fits = (order % N_CLASSES == class_[:, None]) == is_held_out
    fits[:, :n_taken] = False
    n_fitting = fits.sum(axis=1)
    assert n_fitting.min() > 0
    return fits.argmax(axis=1), np.log(n_fitting).astype(np.float32)
