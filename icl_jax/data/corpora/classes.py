"""The ``classes`` corpus: few-shot classification, which a model can solve from its weights or from its context.

A row is BOS and items, each with its label; the last label is asked for. The classes of training rows keep their
labels, so that they can be memorised; where a row is bursty the last item has stood in it before, so that its label can
be looked up. Held-out rows tell the two apart.
Source: Chan et al. 2022, "Data Distributional Properties Drive Emergent In-Context Learning in Transformers"; sizes:
Reddy 2024, "The mechanistic basis of data dependence and abrupt learning in an in-context classification task".
Departures: an item is two letters, not a vector around its class's mean, so that new classes are new pairs of known
letters and there is no noise within a class; all classes are equally common (rank exponent 0); and the
loss counts all tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config, UserError
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus
from icl_jax.data.corpus import Progress
from icl_jax.data.streams import Stream, random_stream

VERSION = 1
"""Goes up whenever the rows of a given config change."""

BOS_ID = 0
_MAX_LETTERS = 4096  # their pairs are shuffled as one array, 128 MiB


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassesOptions(Options):
    """Few-shot classification, from the context or from the weights."""

    n_classes: int = 2048
    """Classes of training rows."""
    n_labels: int = 32
    """Labels that they share."""
    burstiness: int = 2
    """Times that each class of a bursty row stands in its context."""
    bursty: float = 1.0
    """Share of training rows that are bursty."""

    def __post_init__(self) -> None:
        check_types("data.classes", self)
        for name in ("n_classes", "n_labels", "burstiness"):
            require(getattr(self, name) >= 1, f"data.classes.{name}", getattr(self, name), "must be 1 or more")
        require(0 <= self.bursty <= 1, "data.classes.bursty", self.bursty, "must be from 0 to 1")


class ClassesCorpus(GeneratedCorpus[NDArray[np.int32]]):
    """Ids: BOS, `n_labels` labels, and letters to the end of the vocabulary.

    A class is a pair of letters. `n_classes` pairs, drawn once, are those of training rows, and each keeps its label;
    the other pairs are new classes. A row has n_ctx / 3 - 1 items with their labels as context, then the target and its
    label. Of training rows a share `bursty` is bursty: context / burstiness different classes stand in it `burstiness`
    times each, in random order, and the target is one of them. In the others each is drawn alone.
    """

    label_names = ("new_class", "swapped_label", "in_weights")
    """The last label of held-out rows, which take turns: bursty rows of new classes, with labels drawn for the row;
    bursty rows of training classes, all labels moved on by one; rows of different training classes, the target none of
    the context's."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        super().__init__(config)
        options = config.data.options_of(ClassesOptions)
        self._n_labels, self._n_classes = options.n_labels, options.n_classes
        self._burstiness, self._bursty = options.burstiness, options.bursty
        self._n_context = self.n_ctx // 3 - 1
        if self.n_ctx % 3 or self._n_context < 1 or self._n_context % self._burstiness:
            allowed = f"must be 3 + 3 x a multiple of data.classes.burstiness = {self._burstiness}"
            raise UserError(f"model.n_ctx = {self.n_ctx}: {allowed}")
        self._n_letters = self.vocab_size - 1 - self._n_labels
        n_pairs, n_items = max(self._n_letters, 0) ** 2, self._n_context + 1
        if self._n_classes < n_items:
            raise UserError(
                f"data.classes.n_classes = {self._n_classes}: must be {n_items} or more, the items of a row"
            )
        if self._n_letters > _MAX_LETTERS:
            allowed = f"must be at most {1 + self._n_labels + _MAX_LETTERS} for data.source = 'classes'"
            raise UserError(f"model.vocab_size = {self.vocab_size}: {allowed}")
        if n_pairs < self._n_classes + n_items:
            allowed = f"must leave letters for {self._n_classes + n_items} pairs beside BOS and data.classes.n_labels"
            raise UserError(f"model.vocab_size = {self.vocab_size}: {allowed}")
        # Training classes come first.
        self._pairs = random_stream(self._seed, Stream.CLASSES).permutation(n_pairs)

    def _different(self, rng: np.random.Generator, n_choices: int, n: int) -> NDArray[np.int32]:
        """[row, n] different numbers below n_choices in each row, uniform."""
        drawn = np.stack([rng.integers(0, n_choices - i, BLOCK_ROWS) for i in range(n)], axis=1)
        # The i-th draw counts the numbers that are still free.
        for i in range(1, n):
            for taken in np.sort(drawn[:, :i], axis=1).T:
                drawn[:, i] += drawn[:, i] >= taken
        return drawn.astype(np.int32)

    def _bursts(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """[row, context + 1] which of the row's different classes stand where: each in bursts, then the target."""
        n_different = self._n_context // self._burstiness
        each = np.tile(np.repeat(np.arange(n_different), self._burstiness), (BLOCK_ROWS, 1))
        target = rng.integers(0, n_different, (BLOCK_ROWS, 1))
        return np.concatenate([rng.permuted(each, axis=1), target], axis=1)

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[NDArray[np.int32]]:
        n_items = self._n_context + 1
        order = self._bursts(rng)
        known = self._different(rng, self._n_classes, n_items)
        bursts = np.take_along_axis(known, order, axis=1)
        if not is_held_out:
            alone = rng.integers(0, self._n_classes, bursts.shape, dtype=np.int32)
            classes = np.where(rng.random((BLOCK_ROWS, 1)) < self._bursty, bursts, alone)
            return self._block_of(classes, classes % self._n_labels, np.zeros(BLOCK_ROWS, np.uint8))
        new = self._n_classes + self._different(rng, len(self._pairs) - self._n_classes, n_items)
        new_labels = rng.integers(0, self._n_labels, new.shape, dtype=np.int32)
        kind = np.arange(BLOCK_ROWS) % len(self.label_names)
        is_new, is_swapped = kind[:, None] == 0, kind[:, None] == 1
        classes = np.select([is_new, is_swapped], [np.take_along_axis(new, order, axis=1), bursts], known)
        given = np.take_along_axis(new_labels, order, axis=1)
        own = (classes + is_swapped) % self._n_labels
        return self._block_of(classes, np.where(is_new, given, own), (kind + 1).astype(np.uint8))

    def _block_of(
        self, classes: NDArray[np.int32], class_labels: NDArray[np.int32], kind: NDArray[np.uint8]
    ) -> Block[NDArray[np.int32]]:
        tokens = np.full((BLOCK_ROWS, self.n_ctx + 1), BOS_ID, np.int32)
        first, second = np.divmod(self._pairs[classes], self._n_letters)
        tokens[:, 1::3], tokens[:, 2::3] = 1 + self._n_labels + first, 1 + self._n_labels + second
        tokens[:, 3::3] = 1 + class_labels
        labels = np.zeros(tokens.shape, np.uint8)
        labels[:, -1] = kind
        return Block(tokens, labels, classes)

    @property
    def _definition(self) -> dict[str, Any]:
        return {
            "corpus": "classes",
            "version": VERSION,
            "n_labels": self._n_labels,
            "n_classes": self._n_classes,
            "burstiness": self._burstiness,
            "bursty": self._bursty,
        }


CORPUS = CorpusKind(open=ClassesCorpus, options=ClassesOptions)
