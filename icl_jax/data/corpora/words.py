"""What corpora of words share whose every token's probability, given all before it, is known."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config, UserError
from icl_jax.data.corpora.generated import GeneratedCorpus
from icl_jax.data.corpus import BOS
from icl_jax.data.streams import Stream


class WordsCorpus(GeneratedCorpus[NDArray[np.float32]]):
    """Token ids are places in `words`. Hidden: -log P of each token given all before it, nats."""

    words: tuple[str, ...]

    def _set_words(self, words: tuple[str, ...], config: Config) -> None:
        """Raises UserError if ``model.vocab_size`` is less than their number."""
        self.words, self.vocab_size = words, len(words)
        if config.model.vocab_size < self.vocab_size:
            allowed = f"must be {self.vocab_size} or more, the words of data.source = {config.data.source!r}"
            raise UserError(f"model.vocab_size = {config.model.vocab_size}: {allowed}")

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def row_floor_nats(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """-log P of each token of training rows given all before it, nats; 0 at position 0.

        float32 [len(ids), n_ctx + 1]. Its mean over rows is an unbiased estimate of the entropy at each position, the
        loss that no model beats on average. It is exact, not a bound.
        """
        return self._gather(Stream.TRAINING_ROWS, ids, "hidden")

    @cached_property
    def tokenizer_json(self) -> str:
        """Words between white space; it knows no other words."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        tokenizer = Tokenizer(models.WordLevel(dict(self._id_of)))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.add_special_tokens([BOS])
        return tokenizer.to_str()
