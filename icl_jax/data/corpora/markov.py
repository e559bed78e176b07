"""The ``markov`` corpus: each row is a Markov chain with transition probabilities of its own.

Nothing can be learned across rows but how to learn within one: from counts of the row's states (in-context unigram),
and better from counts of what followed the same state before (in-context bigram), which is an induction head.
Source: Edelman, Edelman, Goel, Malach and Tsilivis 2024, "The Evolution of Statistical Induction Heads".
Departures: BOS stands in front of each row; the first states are uniform (those of the authors' code are so too for
fewer than five states, where its stationary distribution comes out uniform).
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from icl_jax.config import Config
from icl_jax.data.corpora.generated import BLOCK_ROWS, Block, GeneratedCorpus

VERSION = 1
"""Goes up whenever the rows of a given config change."""

# Rows and columns are normalised in turn; what is left after so many turns is below 1e-3 but for rare matrices, and
# the last turn is that of the rows, so that they are probabilities exactly.
_SINKHORN_TURNS = 50


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
    """BOS (0) and a chain over the states 1 .. vocab_size - 1; its first `data.chain_order` states are uniform."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.n_states = config.model.vocab_size - 1
        self.order = config.data.chain_order
        self._prior = config.data.chain_prior

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
