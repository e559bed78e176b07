"""What a one-layer head has learned, as skip-trigrams: "a ... b -> c", a earlier in the context, c raised after b.

A head gives a triple ``QK[b, a]`` of attention (each destination b centred over sources) and ``OV[a, c]`` of logit
(each source centred over c). Both are divided by their root mean square over all tokens, and triples are ranked by the
sum: the paper names no one measure. The circuits of the first layer are exact: its norm's scale depends on the token
alone.
Source: Elhage et al. 2021, "Interpreting one-layer transformers: skip-trigrams".
Departures: positions are left out (with rotary ones, distance 0; with standard ones, also from the norm's scale), and
so is smearing. Since a triple is a sum of a term in (a, b) and one in (a, c), combinations that no text holds are
raised as well (the paper's "bugs"): hence the check against rows of text.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from icl_jax.config import ModelConfig
from icl_jax.measures.circuits import Weights, centred_unembedding, fold_norms, seen_embedding
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_plain_keys

TOP = 100
# A triple counts in the check against text if its destination stands after its source so many times.
MIN_SUPPORT = 5
_BLOCK = 256


class Triples(NamedTuple):
    """Skip-trigrams of one head, best first. A source that raises itself (`source == out`) copies."""

    source: Int[np.ndarray, " R"]
    destination: Int[np.ndarray, " R"]
    out: Int[np.ndarray, " R"]
    score: Float[np.ndarray, " R"]
    """Attention and logit in units of their root mean squares, summed."""


class HeadCircuits(NamedTuple):
    """Factors of a head's circuits: ``destination @ source.T`` and ``value @ out`` have a root mean square of 1."""

    destination: Float[np.ndarray, "V E"]
    source: Float[np.ndarray, "V E"]
    value: Float[np.ndarray, "V E"]
    out: Float[np.ndarray, "E V"]


def head_circuits(weights: Weights, config: ModelConfig, head: int) -> HeadCircuits:
    """Of one head of the first layer, from one snapshot's folded weights."""
    tokens = seen_embedding(weights, config)
    W_Q, W_K, W_V, W_O = (weights[name][0, head] for name in ("W_Q", "W_K", "W_V", "W_O"))
    destination, source = tokens @ W_Q, tokens @ W_K
    if "b_Q" in weights:
        destination = destination + weights["b_Q"][0, head]
    source = source - source.mean(axis=0)
    value, out = tokens @ W_V, W_O @ centred_unembedding(weights)
    return HeadCircuits(destination / _rms(destination, source.T), source, value / _rms(value, out), out)


def _rms(A: Float[np.ndarray, "V E"], B: Float[np.ndarray, "E V"]) -> float:
    """Root mean square entry of A @ B; 1 where all are zero."""
    total = np.sum((A.T @ A) * (B @ B.T))
    return float(np.sqrt(max(total, 0.0) / (A.shape[0] * B.shape[1]))) or 1.0


def top_triples(circuits: HeadCircuits, excluded_sources: Int[np.ndarray, " X"], top: int = TOP) -> Triples:
    """The `top` triples of largest score over all V^3, sources other than `excluded_sources`; fewer if there are fewer.

    A triple among the best `top` has a source among the `top` whose own best triple is best: only these are sorted.
    """
    destination, source, value, out = (factor.astype(np.float32) for factor in circuits)
    n_vocab = len(source)
    best, buffer = np.empty(n_vocab, np.float32), np.empty((min(_BLOCK, n_vocab), n_vocab), np.float32)
    for start in range(0, n_vocab, _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = buffer[: len(source[block])]
        best[block] = np.matmul(source[block], destination.T, out=rows).max(axis=1)
        best[block] += np.matmul(value[block], out, out=rows).max(axis=1)
    allowed = np.setdiff1d(np.arange(n_vocab), excluded_sources)
    sources = allowed[np.argsort(-best[allowed], kind="stable")[:top]]
    attention, logit = source[sources] @ destination.T, value[sources] @ out
    by_attention, by_logit = (np.argsort(-x, axis=1, kind="stable")[:, :top] for x in (attention, logit))
    # A pair of the i-th best attention and the j-th best logit has at least (i + 1)(j + 1) - 1 triples above it.
    i, j = np.nonzero(np.outer(np.arange(1, by_attention.shape[1] + 1), np.arange(1, by_logit.shape[1] + 1)) <= top)
    b, c = by_attention[:, i], by_logit[:, j]
    summed = np.take_along_axis(attention, b, axis=1) + np.take_along_axis(logit, c, axis=1)
    order = np.argsort(-summed, axis=None, kind="stable")[:top]
    row = order // summed.shape[1]
    return Triples(sources[row], b.reshape(-1)[order], c.reshape(-1)[order], summed.reshape(-1)[order])


class TextCheck(NamedTuple):
    """Triples in rows of text."""

    n_after_source: Int[np.ndarray, " R"]
    """Times that b stood with an a before it."""
    lift: Float[np.ndarray, " R"]
    """P(c | b, a before) - P(c | b); 0 where b never stood after a."""


class TextIndex:
    """Rows of text, arranged so that the occurrences of a token are found at once."""

    def __init__(self, rows: Int[np.ndarray, "B T1"], vocab_size: int) -> None:
        here, self.following = rows[:, :-1], rows[:, 1:].reshape(-1)
        self.order = np.argsort(here, axis=None, kind="stable")
        self.bounds = np.searchsorted(here.reshape(-1)[self.order], np.arange(vocab_size + 1))
        # Where each token first stands in each row; the row's length where it does not.
        self.first = np.full((len(rows), vocab_size), rows.shape[1], np.int32)
        for position in range(rows.shape[1] - 1, -1, -1):
            self.first[np.arange(len(rows)), rows[:, position]] = position
        self.row, self.position = np.divmod(self.order, here.shape[1])

    def check(self, triples: Triples) -> TextCheck:
        """Whether the rows bear the triples out: does an earlier a make c more likely after b?"""
        n_after, lift = np.zeros(len(triples.source), np.int64), np.zeros(len(triples.source))
        for i, (a, b, c) in enumerate(zip(triples.source, triples.destination, triples.out, strict=True)):
            found = slice(self.bounds[b], self.bounds[b + 1])
            is_after = self.first[self.row[found], a] < self.position[found]
            n_after[i] = np.count_nonzero(is_after)
            if n_after[i]:
                is_c = self.following[self.order[found]] == c
                n_c, n_c_after = np.count_nonzero(is_c), np.count_nonzero(is_c & is_after)
                lift[i] = n_c_after / n_after[i] - n_c / len(is_c)
        return TextCheck(n_after, lift)


def precision(check: TextCheck, min_support: int = MIN_SUPPORT) -> float:
    """Share of the triples with enough support that the rows bear out (lift > 0); NaN if none has."""
    is_supported = check.n_after_source >= min_support
    return float(np.mean(check.lift[is_supported] > 0)) if is_supported.any() else float("nan")


def _measure(context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
    config = context.config.model
    weights = fold_norms(params, config)
    rows = context.held_out
    text = TextIndex(rows, config.vocab_size)
    bos = np.array([context.bos_id])
    random_sources = np.random.default_rng(context.seed).choice(rows[:, 1:].reshape(-1), (config.n_heads, TOP))
    found: dict[str, list[np.ndarray]] = {name: [] for name in MEASUREMENT.variables}
    for s in range(len(weights["W_E"])):
        one = {name: value[s] for name, value in weights.items()}
        heads: dict[str, list[np.ndarray]] = {name: [] for name in MEASUREMENT.variables}
        for head in range(config.n_heads):
            triples = top_triples(head_circuits(one, config, head), bos)
            control = triples._replace(source=random_sources[head][: len(triples.source)])
            check, control_check = text.check(triples), text.check(control)
            answer = {
                "skip_trigram_source": triples.source,
                "skip_trigram_destination": triples.destination,
                "skip_trigram_out": triples.out,
                "skip_trigram_score": triples.score,
                "skip_trigram_lift": check.lift,
                "skip_trigram_support": check.n_after_source,
                "skip_trigram_precision": np.asarray(precision(check)),
                "skip_trigram_precision_random": np.asarray(precision(control_check)),
                "skip_trigram_copies": np.asarray(np.mean(triples.source == triples.out)),
            }
            for name, value in answer.items():
                heads[name].append(value)
        for name, values in heads.items():
            found[name].append(np.stack(values))
    return {name: np.stack(values) for name, values in found.items()}


def _why_not(context: Context) -> str | None:
    if context.config.model.n_layers != 1:
        return f"skip-trigrams are what a one-layer model is made of; model.n_layers = {context.config.model.n_layers}"
    return needs_plain_keys(context)


_RANKED = ("head", "rank")
_NO_SUPPORT = f"no triple's destination stands after its source {MIN_SUPPORT} times in the held-out rows"

MEASUREMENT = Measurement(
    name="skip_trigrams",
    source="Elhage et al. 2021, Interpreting one-layer transformers: skip-trigrams",
    variables={
        "skip_trigram_source": Variable(_RANKED, "token", "a of the best triples a ... b -> c, BOS aside"),
        "skip_trigram_destination": Variable(_RANKED, "token", "b of the best triples"),
        "skip_trigram_out": Variable(_RANKED, "token", "c of the best triples"),
        "skip_trigram_score": Variable(
            _RANKED, "1", "attention from b to a and logit of c from a, each over its RMS, summed"
        ),
        "skip_trigram_lift": Variable(
            _RANKED, "1", "P(c | b, a before) - P(c | b) in the held-out rows; 0 without support"
        ),
        "skip_trigram_support": Variable(_RANKED, "1", "times that b stands after a in the held-out rows"),
        "skip_trigram_precision": Variable(
            ("head",), "1", f"share of triples of support {MIN_SUPPORT} or more whose lift is above 0", _NO_SUPPORT
        ),
        "skip_trigram_precision_random": Variable(
            ("head",), "1", "the same with sources drawn from the held-out rows in place of the head's", _NO_SUPPORT
        ),
        "skip_trigram_copies": Variable(("head",), "1", "share of the triples that raise their own source; [0, 1]"),
    },
    finish=_measure,
    why_not=_why_not,
)  # fmt: skip
