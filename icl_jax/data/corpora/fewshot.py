"""The ``fewshot`` corpus: items with labels that hold for one row alone, so that only the context tells the last one.

A row is BOS, pairs of an item and its label, and an item that has stood in the row before; its label is asked for.
Source: Singh et al. 2024, "What needs to go right for an induction head?" (two pairs, 50 classes, 5 labels), after Chan
et al. 2022. Departures: an item is one token of its own in place of a picture's features; BOS stands in front; and no
pairs of labels are kept for held-out rows alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus
from icl_jax.data.corpus import Progress

VERSION = 1
"""Goes up whenever the rows of a given config change."""

BOS_ID = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FewshotOptions(Options):
    """Few-shot classification whose labels are drawn anew for each row, of (model.n_ctx - 2) / 2 pairs and a query."""

    n_labels: int = 5
    """Labels; the other tokens but BOS are items."""

    def __post_init__(self) -> None:
        check_types("data.fewshot", self)
        require(self.n_labels >= 1, "data.fewshot.n_labels", self.n_labels, "must be 1 or more")

    def check(self, config: Config) -> None:
        n_ctx, n_pairs = config.model.n_ctx, n_pairs_of(config)
        allowed = "must be even and 4 or more: BOS, items with their labels, and the item that is asked for"
        require(n_ctx >= 4 and n_ctx % 2 == 0, "model.n_ctx", n_ctx, allowed)
        allowed = f"must be {n_pairs} or more with model.n_ctx = {n_ctx}: the labels of a row differ"
        require(self.n_labels >= n_pairs, "data.fewshot.n_labels", self.n_labels, allowed)
        least = 1 + self.n_labels + n_pairs
        allowed = f"must be {least} or more: BOS, data.fewshot.n_labels and the items of a row"
        require(config.model.vocab_size >= least, "model.vocab_size", config.model.vocab_size, allowed)


def n_pairs_of(config: Config) -> int:
    """Items with their labels before the item that is asked for."""
    return (config.model.n_ctx - 2) // 2


class FewshotCorpus(GeneratedCorpus[None]):
    """Ids: BOS, `n_labels` labels, and items to the end of the vocabulary.

    The items before the last are different ones, each equally likely, as are their labels; the last is one of them.
    """

    label_names = ("query",)
    """The label that is asked for, the last token of every held-out row."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        super().__init__(config)
        self._n_pairs = n_pairs_of(config)
        self._n_labels = config.data.options_of(FewshotOptions).n_labels

    def _different(self, rng: np.random.Generator, n_choices: int) -> NDArray[np.intp]:
        """[row, pair] different numbers below n_choices in each row, uniform."""
        return np.argsort(rng.random((BLOCK_ROWS, n_choices)), axis=1)[:, : self._n_pairs]

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[None]:
        items = 1 + self._n_labels + self._different(rng, self.vocab_size - 1 - self._n_labels)
        given = 1 + self._different(rng, self._n_labels)
        asked = rng.integers(0, self._n_pairs, (BLOCK_ROWS, 1))
        tokens = np.full((BLOCK_ROWS, self.n_ctx + 1), BOS_ID, np.int32)
        tokens[:, 1:-2:2], tokens[:, 2:-1:2] = items, given
        tokens[:, -2:-1], tokens[:, -1:] = (np.take_along_axis(each, asked, axis=1) for each in (items, given))
        labels = np.zeros(tokens.shape, np.uint8)
        labels[:, -1] = 1
        return Block(tokens, labels, None)

    @property
    def _definition(self) -> dict[str, Any]:
        return {"corpus": "fewshot", "version": VERSION, "n_pairs": self._n_pairs, "n_labels": self._n_labels}


CORPUS = CorpusKind(open=FewshotCorpus, options=FewshotOptions)
