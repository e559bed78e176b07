"""Rows that were held out and whose text is in training all the same, as where a file is there twice."""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**21
_BASE = 0x9E3779B97F4A7C15
_SIEVE_BITS = 16


def rows_found_again(stream: NDArray[np.integer], n_ctx: int, held_out: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of each held-out row, whether its tokens follow each other, at any place, in what is trained on; [held_out].

    stream: tokens of which row r is those from 1 + r * n_ctx on; held_out: numbers of rows. Every place is compared by
    a rolling hash, and what agrees token by token: a second for some ten million tokens.
    """
    n_rows = (len(stream) - 1) // n_ctx
    is_trained = np.ones(n_rows, np.bool_)
    is_trained[held_out] = False
    targets = stream[1 : 1 + n_rows * n_ctx]
    powers = _powers(_BASE, min(_CHUNK, len(targets)) + n_ctx)
    inverses = _powers(pow(_BASE, -1, 2**64), min(_CHUNK, len(targets)))
    rows = targets.reshape(n_rows, n_ctx)[held_out]
    wanted: dict[int, list[int]] = {}
    for i, value in enumerate(_sums(rows, powers[:n_ctx])):
        wanted.setdefault(int(value), []).append(i)
    sieve = np.zeros(2**_SIEVE_BITS, np.bool_)
    sieve[np.array(list(wanted), np.uint64) >> np.uint64(64 - _SIEVE_BITS)] = True
    is_found = np.zeros(len(held_out), np.bool_)
    n_places = len(targets) - n_ctx + 1
    for start in range(0, n_places, _CHUNK):
        n = min(_CHUNK, n_places - start)
        part = targets[start : start + n + n_ctx - 1].astype(np.uint64) + np.uint64(1)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(part * powers[: len(part)], dtype=np.uint64)])
        hashes = (sums[n_ctx : n_ctx + n] - sums[:n]) * inverses[:n]
        places = np.arange(start, start + n)
        first, last = places // n_ctx, (places + n_ctx - 1) // n_ctx
        may_be = sieve[hashes >> np.uint64(64 - _SIEVE_BITS)] & is_trained[first] & is_trained[last]
        for k in np.flatnonzero(may_be):
            for i in wanted.get(int(hashes[k]), ()):
                if not is_found[i]:
                    is_found[i] = np.array_equal(targets[start + k : start + k + n_ctx], rows[i])
    return is_found


def _powers(base: int, n: int) -> NDArray[np.uint64]:
    """base**0, base**1, ... modulo 2**64."""
    factors = np.full(n, base % 2**64, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _sums(rows: NDArray[np.integer], powers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.sum((rows.astype(np.uint64) + np.uint64(1)) * powers, axis=1, dtype=np.uint64)
