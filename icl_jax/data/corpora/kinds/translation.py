"""Rows of little stories, each told in one language and again in another, whose words stand in another order.

``bami deru goko lepa . ... | fijo zavu hexi wyqe . ... ;``: subject, verb, adjective, object; then subject, object,
adjective, verb. The dictionary is the same in all rows, and a sentence of a held-out row is one that no training row
has.
"""

import numpy as np

from icl_jax.data.corpora.held_out_class import N_CLASSES, held_out_class
from icl_jax.data.corpora.kinds.kind import END, Body, spelled

_SENTENCES = 7  # what the hash of the split begins with
FOREIGN_ORDER = (0, 3, 2, 1)
"""Which word of the native sentence each word of the foreign one translates."""
_LEN = 4


class Translation:
    """See above. A subject and an object are of the same list of nouns."""

    labels = ("translation",)
    """Every foreign word."""

    def __init__(self, n_words: int, n_sentences: int) -> None:
        self._n_words, self._n_sentences = n_words, n_sentences
        native, foreign = spelled(3 * n_words, "bdgklmnprst"), spelled(3 * n_words, "cfhjqvwxyz")
        self.words = (*native, *foreign, ".", "|", END)
        self.dictionary = np.arange(3 * n_words), np.arange(3 * n_words, 6 * n_words)
        """Native words and, place by place, their translations: places in `words`."""

    def rows(self, rng: np.random.Generator, n_rows: int, n_tokens: int, is_held_out: bool) -> Body:
        """See `Kind`."""
        n, n_said = self._n_words, self._n_sentences
        story_len = 2 * n_said * (_LEN + 1) + 2
        n_stories = -(-n_tokens // story_len)
        shape = (n_rows, n_stories, n_said)
        subject, verb, adjective = (rng.integers(0, n, shape) for _ in range(3))
        # Objects of one class out of four are held out, which, the rest of the sentence says.
        class_ = held_out_class(_SENTENCES, subject, verb, adjective)
        other = class_ if is_held_out else (class_ + rng.integers(1, N_CLASSES, shape)) % N_CLASSES
        object_ = N_CLASSES * rng.integers(0, n // N_CLASSES, shape) + other
        assert ((object_ % N_CLASSES == class_) == is_held_out).all()
        native = np.stack([subject, n + verb, 2 * n + adjective, object_], axis=-1)

        stop, turn, end = (self.words.index(word) for word in (".", "|", END))
        tokens = np.full((n_rows, n_stories, story_len), stop, np.int32)
        labels, nats = np.zeros(tokens.shape, np.uint8), np.zeros(tokens.shape, np.float32)
        half = n_said * (_LEN + 1)
        told, again = slice(0, half), slice(half + 1, 2 * half + 1)
        split_shape = (*shape, _LEN + 1)
        tokens[..., told].reshape(split_shape)[..., :_LEN] = native
        tokens[..., again].reshape(split_shape)[..., :_LEN] = 3 * n + native[..., list(FOREIGN_ORDER)]
        tokens[..., half], tokens[..., -1] = turn, end
        labels[..., again].reshape(split_shape)[..., :_LEN] = 1
        n_objects = n // N_CLASSES * (1 if is_held_out else N_CLASSES - 1)
        nats[..., told].reshape(split_shape)[..., :_LEN] = np.log([n, n, n, n_objects])
        return Body(tokens, labels, nats).cut(n_tokens)
