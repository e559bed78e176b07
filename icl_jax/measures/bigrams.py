"""What a zero-layer model has learned: its table ``W_E W_U`` after the softmax against the bigrams of the corpus.

Source: Elhage et al. 2021, "Zero-layer transformers model bigram statistics". A model of width d < V cannot hold every
table: the gap has a floor above zero. Standard positions are left out of the table.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.model.forward import to_logits, unembedding_DV
from icl_jax.model.norm import normalise
from icl_jax.model.params import Params

_ROWS_AT_A_TIME = 512


class BigramFit(NamedTuple):
    """A table of log-probabilities held against counts."""

    kl: float
    """KL(corpus | model) in nats, weighted by the first token's frequency; one pseudo-count per row, spread evenly."""
    pearson: float
    """Correlation of log-probabilities over a row's seen bigrams, mean weighted by frequency; NaN where no row has two
    different counts."""
    loss_gap: float
    """Loss on these bigrams less their entropy, nats; >= 0, and 0 for the corpus's own table."""
    entropy: float
    """Of the second token given the first, nats: no table does better on these counts."""


def log_bigram_table(params: Params, config: ModelConfig) -> Float[Array, "V V"]:
    """log P(column | row) of a zero-layer model, nats."""
    x_VD = normalise(params["W_E"][None], params.get("ln_final_w"), config)[0]
    return jax.nn.log_softmax(to_logits(x_VD, unembedding_DV(params), params.get("b_U"), config), axis=-1)


def bigram_fit(log_probs: Float[np.ndarray, "V V"], counts: Int[np.ndarray, "V V"]) -> BigramFit:
    """Hold log P(second | first) against counts[first, second]. Raises ValueError if nothing was counted."""
    n_total = int(counts.sum())
    if n_total == 0:
        raise ValueError("no bigram was counted")
    kl = gap = entropy = correlation = correlated = 0.0
    # A block of rows at a time bounds the memory.
    for start in range(0, len(counts), _ROWS_AT_A_TIME):
        block = slice(start, start + _ROWS_AT_A_TIME)
        n, log_p = counts[block].astype(np.float64), log_probs[block].astype(np.float64)
        n_row = n.sum(axis=1, keepdims=True)
        weight = n_row[:, 0] / n_total
        smoothed = (n + 1 / n.shape[1]) / (n_row + 1)
        kl += float(weight @ np.sum(smoothed * (np.log(smoothed) - log_p), axis=1))
        is_seen = n > 0
        log_q = np.log(np.where(is_seen, n, 1.0)) - np.log(np.where(n_row > 0, n_row, 1.0))
        entropy -= float(np.sum(n * log_q)) / n_total
        gap += float(np.sum(n * np.where(is_seen, log_q - log_p, 0.0))) / n_total
        r, is_defined = _row_correlation(log_q, log_p, is_seen)
        correlation += float(np.sum((weight * r)[is_defined]))
        correlated += float(np.sum(weight[is_defined]))
    return BigramFit(kl, correlation / correlated if correlated else float("nan"), gap, entropy)


def _row_correlation(a: np.ndarray, b: np.ndarray, is_used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson's r of each row over the entries that are used, and where it is defined."""
    n_used = np.maximum(is_used.sum(axis=1, keepdims=True), 1)
    a, b = (
        np.where(is_used, x - np.sum(np.where(is_used, x, 0.0), axis=1, keepdims=True) / n_used, 0.0) for x in (a, b)
    )
    spread = np.sqrt(np.sum(a**2, axis=1) * np.sum(b**2, axis=1))
    # Below this a row's entries are equal up to rounding.
    is_defined = spread > 1e-9
    return np.sum(a * b, axis=1) / np.where(is_defined, spread, 1.0), is_defined


def count_bigrams(rows: Int[np.ndarray, "B T1"], vocab_size: int) -> Int[np.ndarray, "V V"]:
    """counts[first, second] over all neighbours in the rows."""
    codes = rows[:, :-1].astype(np.int64) * vocab_size + rows[:, 1:]
    return np.bincount(codes.reshape(-1), minlength=vocab_size**2).reshape(vocab_size, vocab_size)


_table = jax.jit(log_bigram_table, static_argnums=1)


def _measure(context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
    config = context.config.model
    counts = context.bigram_counts
    if counts is None:
        counts = count_bigrams(context.held_out, config.vocab_size)
    fits = []
    for s in range(len(params["W_E"])):
        one = {name: jnp.asarray(value[s]) for name, value in params.items()}
        fits.append(bigram_fit(np.asarray(_table(one, config)), counts))
    return {f"bigram_{name}": np.array([getattr(fit, name) for fit in fits]) for name in BigramFit._fields}


def _why_not(context: Context) -> str | None:
    n_layers = context.config.model.n_layers
    if n_layers:
        return f"a table of bigrams is all of a model without layers only; model.n_layers = {n_layers}"
    return None


MEASUREMENT = Measurement(
    name="bigrams",
    source="Elhage et al. 2021, Zero-layer transformers model bigram statistics",
    variables={
        "bigram_kl": Variable((), "nats", "KL(corpus | model), one pseudo-count per row, weighted by frequency; >= 0"),
        "bigram_pearson": Variable(
            (), "1", "correlation of log-probabilities over a row's seen bigrams, weighted by frequency; [-1, 1]",
            "no row of counts has two different ones",
        ),
        "bigram_loss_gap": Variable((), "nats", "loss on the counted bigrams less their entropy; >= 0"),
        "bigram_entropy": Variable((), "nats", "entropy of the second token given the first, of the counts"),
    },
    finish=_measure,
    why_not=_why_not,
)  # fmt: skip
