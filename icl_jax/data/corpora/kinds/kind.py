"""What a kind of row is to the ``mixture`` corpus, and how pairs that are new in held-out rows are told from others."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from icl_jax.data.corpora.held_out_class import held_out_class

END = ";"
"""Closes every example, of all kinds."""


class Body(NamedTuple):
    """Rows of one kind, [row, place], without what the mixture puts in front of them."""

    tokens: NDArray[np.int32]
    """Places in the kind's own `words`."""
    labels: NDArray[np.uint8]
    """i for the i-th of the kind's own `labels` from 1, 0 for none."""
    nats: NDArray[np.float32]
    """-log P of each token given all before it."""

    def cut(self, n_tokens: int) -> "Body":
        """The first tokens of each row."""

        def cut(part: NDArray[Any]) -> NDArray[Any]:
            return part.reshape(len(part), -1)[:, :n_tokens]

        return Body(cut(self.tokens), cut(self.labels), cut(self.nats))


class Kind(Protocol):
    """One kind of row."""

    @property
    def words(self) -> tuple[str, ...]:
        """All that its rows are made of; kinds may share words."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What its answers show."""
        ...

    def rows(self, rng: np.random.Generator, n_rows: int, n_tokens: int, is_held_out: bool) -> Body:
        """Rows of this many tokens, the last example cut off."""
        ...


def is_unseen(*parts: NDArray[np.integer] | int) -> NDArray[np.bool_]:
    """Whether what ``parts`` say is held out: a quarter of all there is to say."""
    return held_out_class(*parts) == 0


def spelled(n: int, consonants: str, last: str = "") -> tuple[str, ...]:
    """The first n words of two syllables and an ending; up to (5 x consonants)^2."""
    syllables = [consonant + vowel for consonant in consonants for vowel in "aeiou"]
    # Neighbours differ in both syllables, so that few words look alike.
    n_all = len(syllables)
    pairs = [(i % n_all, (i + i // n_all) % n_all) for i in range(n)]
    return tuple(syllables[a] + syllables[b] + last for a, b in pairs)
