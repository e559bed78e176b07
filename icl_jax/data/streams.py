"""Independent random streams, each a pure function of a seed, a purpose and an index."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What a stream of random numbers is for. A value never changes its meaning: rows of old runs depend on it."""

    ORDER = 0
    HELD_OUT_SPLIT = 1
    BIGRAM_CHAIN = 2
    TRAINING_ROWS = 3
    HELD_OUT_ROWS = 4
    TOKENIZER_SAMPLE = 5
    CLASSES = 6


def random_stream(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The generator of one (seed, stream, index). Needs 0 <= seed < 2**64 and 0 <= index < 2**56, else ValueError."""
    if not 0 <= index < 2**56:
        raise ValueError(f"{index=} is not from 0 to 2**56 - 1")
    key = np.array([seed, (int(stream) << 56) | index], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
