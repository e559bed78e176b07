"""The ``triggers`` corpus: a chain of characters in which a few triggers have a successor of the row's own.

What follows other characters is learned across rows, into the weights; what follows a trigger can only be looked up
in the row, where the trigger stood before: an induction head.
Source: Bietti, Cabannes, Bouchacourt, Jegou and Bottou 2023, "Birth of a Transformer: A Memory Viewpoint".
Departures: characters of Python's language reference for those of Shakespeare
(`icl_jax.data.corpora.character_bigrams`); BOS stands in front of each row; outputs are never triggers, for where a
trigger may follow a trigger, a row can end in a cycle that it never leaves.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from icl_jax.config import Config, UserError
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.character_bigrams import N_CHARACTERS, load_character_bigrams
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus
from icl_jax.data.corpus import BOS, Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Goes up whenever the rows of a given config change."""

VOCAB_SIZE = 1 + N_CHARACTERS
"""BOS and the characters, the most common first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggersOptions(Options):
    """A chain of characters in which triggers have a successor of the row's own."""

    n_triggers: int = 5
    """Characters whose successor is the row's own."""
    choice: Literal["fixed", "random"] = "fixed"
    """fixed: the most common characters in every row; random: drawn for each row."""

    def __post_init__(self) -> None:
        check_types("data.triggers", self)
        require(1 <= self.n_triggers <= 60, "data.triggers.n_triggers", self.n_triggers, "must be from 1 to 60")


def fixed_triggers(n: int) -> NDArray[np.int32]:
    """Ids of the n most common characters: the triggers of all rows with choice = "fixed"."""
    return np.arange(1, n + 1, dtype=np.int32)


def tokenizer() -> "Tokenizer":
    """Characters one by one; what is not in the table is unknown."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = (BOS, *load_character_bigrams().characters)
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    return made


class TriggersCorpus(GeneratedCorpus[NDArray[np.int32]]):
    """BOS, a character of the unigram distribution, then what follows each character.

    After a trigger that is the row's output for it, else a draw from the bigram distribution. A row's
    `n_triggers` triggers are the most common characters ("fixed"), or drawn from the unigram distribution without
    replacement ("random"); the outputs are drawn uniformly, with replacement, from the characters that are no triggers
    of the row.
    """

    label_names = ("output_new", "output_again")
    """A token after a trigger that is new in the row, and after one that has stood there before."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        if config.model.vocab_size < VOCAB_SIZE:
            allowed = f"must be {VOCAB_SIZE} or more for data.source = 'triggers'"
            raise UserError(f"model.vocab_size = {config.model.vocab_size}: {allowed}")
        super().__init__(config)
        self.vocab_size = VOCAB_SIZE
        options = config.data.options_of(TriggersOptions)
        self._n_triggers, self._choice = options.n_triggers, options.choice
        self._table = load_character_bigrams()

    def _draw_triggers(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """[row, trigger], distinct characters within a row, from 0."""
        if self._choice == "fixed":
            return np.tile(fixed_triggers(self._n_triggers) - 1, (BLOCK_ROWS, 1)).astype(np.intp)
        # The largest of log-probabilities plus Gumbel noise are a sample without replacement.
        keys = np.log(self._table.unigram) + rng.gumbel(size=(BLOCK_ROWS, N_CHARACTERS))
        return np.argsort(-keys, axis=1)[:, : self._n_triggers]

    def _draw_outputs(self, rng: np.random.Generator, triggers: NDArray[np.intp]) -> NDArray[np.int32]:
        """[row, character] -> the character that follows it in the row; -1 for a character that is no trigger."""
        is_trigger = np.zeros((BLOCK_ROWS, N_CHARACTERS), bool)
        np.put_along_axis(is_trigger, triggers, True, axis=1)
        others = np.argsort(is_trigger, axis=1, kind="stable")  # those that are no triggers come first
        places = rng.integers(0, N_CHARACTERS - self._n_triggers, triggers.shape)
        outputs = np.full((BLOCK_ROWS, N_CHARACTERS), -1, np.int32)
        np.put_along_axis(outputs, triggers, np.take_along_axis(others, places, axis=1).astype(np.int32), axis=1)
        return outputs

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[NDArray[np.int32]]:
        triggers = self._draw_triggers(rng)
        outputs = self._draw_outputs(rng, triggers)
        coins_TB = rng.random((self.n_ctx, BLOCK_ROWS))
        first_cdf = np.cumsum(self._table.unigram)[:-1]  # the last character takes what rounding leaves
        next_cdf = np.cumsum(self._table.bigram, axis=1)[:, :-1]
        row_B = np.arange(BLOCK_ROWS)
        chars_TB = np.empty((self.n_ctx, BLOCK_ROWS), np.int32)
        chars_TB[0] = np.searchsorted(first_cdf, coins_TB[0], side="right")
        for t in range(1, self.n_ctx):
            drawn_B = np.sum(coins_TB[t, :, None] >= next_cdf[chars_TB[t - 1]], axis=1, dtype=np.int32)
            output_B = outputs[row_B, chars_TB[t - 1]]
            chars_TB[t] = np.where(output_B >= 0, output_B, drawn_B)

        tokens = np.zeros((BLOCK_ROWS, self.n_ctx + 1), np.int32)
        tokens[:, 1:] = chars_TB.T + 1
        labels = np.zeros(tokens.shape, np.uint8)
        for trigger_B in triggers.T:
            is_here = tokens[:, 1:-1] == trigger_B[:, None] + 1
            labels[:, 2:][is_here] = 1 + (np.cumsum(is_here, axis=1)[is_here] > 1)
        return Block(tokens, labels, outputs)

    @property
    def tokenizer_json(self) -> str:
        return tokenizer().to_str()

    @property
    def _definition(self) -> dict[str, Any]:
        return {
            "corpus": "triggers",
            "version": VERSION,
            "n_triggers": self._n_triggers,
            "trigger_choice": self._choice,
        }


CORPUS = CorpusKind(open=TriggersCorpus, options=TriggersOptions)
