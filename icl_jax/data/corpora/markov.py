"""The ``markov`` corpus: each row is a Markov chain with transition probabilities of its own.

Nothing can be learned across rows but how to learn within one: from counts of the row's states (in-context unigram),
and better from counts of what followed the same state before (in-context bigram), which is an induction head.
Source: Edelman, Edelman, Goel, Malach and Tsilivis 2024, "The Evolution of Statistical Induction Heads".
Departures: BOS stands in front of each row; the first states are uniform (those of the authors' code are so too for
fewer than five states, where its stationary distribution comes out uniform).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.config.checks import check_types, require
from icl_jax.config.corpora import CorpusKind, Options
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus
from icl_jax.data.corpus import Progress

VERSION = 1
"""Goes up whenever the rows of a given config change."""

# Rows and columns are normalised in turn; what is left after so many turns is below 1e-3 but for rare matrices, and
# the last turn is that of the rows, so that they are probabilities exactly.
_SINKHORN_TURNS = 50
_MAX_CHAIN_ENTRIES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkovOptions(Options):
    """Each row a Markov chain of its own."""

    order: int = 1
    """States that the next state depends on."""
    prior: Literal["dirichlet", "doubly_stochastic", "unigram"] = "dirichlet"
    """dirichlet: any chain; doubly_stochastic: all states equally common; unigram: independent states."""

    def __post_init__(self) -> None:
        check_types("data.markov", self)
        require(self.order >= 1, "data.markov.order", self.order, "must be 1 or more")
        is_defined = self.prior != "doubly_stochastic" or self.order == 1
        allowed = "must be 1 with data.markov.prior = 'doubly_stochastic'"
        require(is_defined, "data.markov.order", self.order, allowed)

    def check(self, config: Config) -> None:
        n_ctx, vocab_size = config.model.n_ctx, config.model.vocab_size
        n_states = vocab_size - 1
        allowed = "must be 3 or more for markov: BOS and at least two states"
        require(n_states >= 2, "model.vocab_size", vocab_size, allowed)
        allowed = f"must be at most model.n_ctx - 2 = {n_ctx - 2}"
        require(self.order <= n_ctx - 2, "data.markov.order", self.order, allowed)
        chances = f"{n_states} ** (data.markov.order + 1) chances"
        allowed = f"must be smaller: {chances} are more than {_MAX_CHAIN_ENTRIES}"
        is_small = self.order < 64 and n_states ** (self.order + 1) <= _MAX_CHAIN_ENTRIES  # no endless power
        require(is_small, "model.vocab_size", vocab_size, allowed)


def draw_chains(
    rng: np.random.Generator, n: int, n_states: int, order: int, prior: str
) -> Float[np.ndarray, "n contexts states"]:
    """n transition tables, float64 [n, n_states ** order, n_states]; the last axis sums to 1.

    Row c holds the distribution of the next state after the states that are the digits of c to the base n_states, the
    latest state the last digit. Prior "dirichlet": each row is Dirichlet(1, …, 1), uniform on the simplex; "unigram":
    the same, but one row stands for all contexts; "doubly_stochastic" (order 1): rows of exponential numbers scaled by
    Sinkhorn's iteration until columns sum to 1 too, so that all states are equally common.
    """
    n_drawn = 1 if prior == "unigram" else n_states**order
    table = rng.standard_exponential((n, n_drawn, n_states))
    if prior == "doubly_stochastic":
        for _ in range(_SINKHORN_TURNS):
            table /= table.sum(axis=1, keepdims=True)
            table /= table.sum(axis=2, keepdims=True)
    table /= table.sum(axis=2, keepdims=True)
    return np.broadcast_to(table, (n, n_states**order, n_states))


class MarkovCorpus(GeneratedCorpus[NDArray[np.float64]]):
    """BOS (0) and a chain over the states 1 .. vocab_size - 1; its first `order` states are uniform."""

    def __init__(self, config: Config, progress: Progress | None = None) -> None:
        super().__init__(config)
        self.n_states = config.model.vocab_size - 1
        options = config.data.options_of(MarkovOptions)
        self.order, self._prior = options.order, options.prior

    def _make_block(self, rng: np.random.Generator, is_held_out: bool) -> Block[NDArray[np.float64]]:
        chains = draw_chains(rng, BLOCK_ROWS, self.n_states, self.order, self._prior)
        cdf = np.cumsum(chains, axis=2)[:, :, :-1]  # the last state takes what rounding leaves
        coins_TB = rng.random((self.n_ctx, BLOCK_ROWS))
        states_TB = np.empty((self.n_ctx, BLOCK_ROWS), np.int32)
        row_B, context_B = np.arange(BLOCK_ROWS), np.zeros(BLOCK_ROWS, np.int64)
        for t in range(self.n_ctx):
            if t < self.order:
                states_TB[t] = coins_TB[t] * self.n_states
            else:
                states_TB[t] = np.sum(coins_TB[t, :, None] >= cdf[row_B, context_B], axis=1)
            context_B = (context_B * self.n_states + states_TB[t]) % self.n_states**self.order
        tokens = np.zeros((BLOCK_ROWS, self.n_ctx + 1), np.int32)
        tokens[:, 1:] = states_TB.T + 1
        return Block(tokens, np.zeros(tokens.shape, np.uint8), chains)

    def held_out_chains(self, n: int) -> Float[np.ndarray, "n contexts states"]:
        """Transition tables of the first n held-out rows; see :func:`draw_chains`."""
        return self.held_out_hidden(n)

    @property
    def _definition(self) -> dict[str, Any]:
        return {"corpus": "markov", "version": VERSION, "chain_order": self.order, "chain_prior": self._prior}


CORPUS = CorpusKind(open=MarkovCorpus, options=MarkovOptions)
