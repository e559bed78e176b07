"""The ``patterns`` corpus: lines whose label depends on the classes of their words, by a rule that is new in every row.

``july frog: 3`` and ``may lion: 3``, but ``july pear: 0`` and ``gray lion: 7``: one word of two classes, one of two
others, and a label for each of the four pairs. Which classes, in which order, and which labels, is drawn anew for each
row; only what class a word is of stays the same. So a label can be told from an earlier line of the same pair, whose
words are other ones: by an induction head that matches meanings, not tokens.

A large language model knows what months and fruits are, and copies, before it meets such a list. Here two more kinds of
rows teach that, as steps on the way: rows whose lines come again word for word, and rows whose labels always are those
of the same pairs. Source: Olsson et al. 2022, Argument 4, "Pattern matching". Departures: those rows; the four classes
change places; a label and its colon are one token, so that what predicts the label is the line's second word.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config, UserError
from icl_jax.config.corpora import CorpusKind
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus
from icl_jax.data.corpus import BOS, Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Goes up whenever the rows of a given config change."""

CLASSES = (
    (
        "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
        "december",
    ),
    ("blue", "gray", "purple", "yellow", "green", "red", "brown", "pink", "white", "black", "violet", "silver"),
    ("bird", "snake", "frog", "lion", "fish", "monkey", "lizard", "horse", "tiger", "mouse", "rabbit", "bear"),
    (
        "grape", "pear", "strawberry", "kiwi", "pineapple", "cherry", "apple", "mango", "lemon", "peach", "banana",
        "plum",
    ),
)  # fmt: skip
"""Words by class; those of the paper's figure come first."""
LABELS = tuple(f": {i}" for i in range(12))
VOCABULARY = (BOS, "\n", *LABELS, *(word for words in CLASSES for word in words))

KNOWN_LABELS = np.full((len(CLASSES), len(CLASSES)), -1)
"""Index of the label of (first word's class, second word's class) where it is not drawn; -1: never in one line."""
KNOWN_LABELS[~np.eye(len(CLASSES), dtype=bool)] = np.arange(len(LABELS))

_END = VOCABULARY.index("\n")
_FIRST_LABEL = VOCABULARY.index(LABELS[0])
_CLASS_WORDS = np.array([[VOCABULARY.index(word) for word in words] for words in CLASSES])
_LINE_LEN = 4  # two words, label, line end
_N_PAIRS = 4
# Shares of rows, and from how many to how many different lines a row has whose lines come again.
_KNOWN_ROWS = 0.25
_AGAIN_ROWS = 0.5
_N_DIFFERENT = (2, 6)


def tokenizer() -> "Tokenizer":
    """Words, labels with their colons (": 3" is one token) and line ends."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|: \d+|[^\s:]+|:"), behavior="removed", invert=True)
    return made


class PatternsCorpus(GeneratedCorpus[NDArray[np.int64]]):
    """A row is BOS and lines of four tokens, the last cut off by the row's end: word, word, label, line end.

    The four classes of words are dealt out anew for each row, two to each place; each of the four pairs has a label of
    its own, out of twelve. Each line's pair and words are drawn uniformly. Half of the rows have 2 to 6 different lines
    that come again, in random order; in the others every line is drawn. In three rows out of four, of either kind, the
    labels are drawn anew; in the fourth a pair's label is the same in all such rows, one for each of the twelve pairs
    of classes. What is hidden: the pair of each line, [row, line].
    """

    bos_id = VOCABULARY.index(BOS)
    label_names = ("class_new", "class_seen", "words_seen", "class_known")
    """In rows whose labels are drawn: of a pair of classes that is new in the row, of one that earlier lines had, with
    other words, and of two words that have stood in one line before. In the others: class_known."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        if config.model.vocab_size < len(VOCABULARY):
            allowed = f"must be {len(VOCABULARY)} or more for data.source = 'patterns'"
            raise UserError(f"model.vocab_size = {config.model.vocab_size}: {allowed}")
        super().__init__(config)
        self.vocab_size = len(VOCABULARY)

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[NDArray[np.int64]]:
        n_lines, n_words = max(-(-self.n_ctx // _LINE_LEN), _N_DIFFERENT[1]), _CLASS_WORDS.shape[1]
        row_B1 = np.arange(BLOCK_ROWS)[:, None]
        dealt_BxC = rng.permuted(np.tile(np.arange(len(CLASSES)), (BLOCK_ROWS, 1)), axis=1)
        labels_BxP = rng.permuted(np.tile(np.arange(len(LABELS)), (BLOCK_ROWS, 1)), axis=1)[:, :_N_PAIRS]
        is_known_B = rng.random(BLOCK_ROWS) < _KNOWN_ROWS
        is_again_B1 = rng.random((BLOCK_ROWS, 1)) < _AGAIN_ROWS
        n_different_B1 = rng.integers(*_N_DIFFERENT, (BLOCK_ROWS, 1), endpoint=True)
        source_BxL = np.where(is_again_B1, rng.integers(0, n_different_B1, (BLOCK_ROWS, n_lines)), np.arange(n_lines))
        pair_BxL = rng.integers(0, _N_PAIRS, (BLOCK_ROWS, n_lines))[row_B1, source_BxL]
        word_BxLx2 = rng.integers(0, n_words, (BLOCK_ROWS, n_lines, 2))[row_B1, source_BxL]

        # The first place has the row's first two classes, the second place the other two.
        class_BxLx2 = np.stack([dealt_BxC[row_B1, pair_BxL // 2], dealt_BxC[row_B1, 2 + pair_BxL % 2]], axis=-1)
        label_BxL = np.where(is_known_B[:, None], KNOWN_LABELS[tuple(class_BxLx2.T)].T, labels_BxP[row_B1, pair_BxL])
        lines_BxLx4 = np.empty((BLOCK_ROWS, n_lines, _LINE_LEN), np.int32)
        lines_BxLx4[..., :2] = _CLASS_WORDS[class_BxLx2, word_BxLx2]
        lines_BxLx4[..., 2] = _FIRST_LABEL + label_BxL
        lines_BxLx4[..., 3] = _END

        is_before_LxL = np.tri(n_lines, k=-1, dtype=bool)
        same_class_BxLxL = pair_BxL[:, :, None] == pair_BxL[:, None, :]
        same_words_BxLxL = (lines_BxLx4[:, :, None, :2] == lines_BxLx4[:, None, :, :2]).all(axis=3)
        shown_BxLx4 = np.zeros(lines_BxLx4.shape, np.uint8)
        for same_BxLxL in (same_class_BxLxL, same_words_BxLxL):
            shown_BxLx4[..., 2] += (same_BxLxL & is_before_LxL).any(axis=2)
        shown_BxLx4[..., 2] += 1
        shown_BxLx4[is_known_B, :, 2] = 1 + self.label_names.index("class_known")

        def row(first: int, lines: NDArray[Any]) -> NDArray[Any]:
            tokens = lines.reshape(BLOCK_ROWS, -1)[:, : self.n_ctx]
            return np.concatenate([np.full((BLOCK_ROWS, 1), first, lines.dtype), tokens], axis=1)

        return Block(row(self.bos_id, lines_BxLx4), row(0, shown_BxLx4), pair_BxL)

    @property
    def tokenizer_json(self) -> str:
        return tokenizer().to_str()

    @property
    def _definition(self) -> dict[str, Any]:
        return {"corpus": "patterns", "version": VERSION, "vocabulary": VOCABULARY}


CORPUS = CorpusKind(open=PatternsCorpus)
