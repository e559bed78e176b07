"""Pattern matching: does a head attend to the labels of earlier lines of the same classes?

On rows of the `patterns` corpus (``july frog: 3``), or of patterns in the `mixture`, with q the word before a label
whose pair of classes earlier lines had, but none of them its two words, so that classes alone tell the label:

- pattern_matching: attention of q to the labels of earlier lines of the same pair, over its attention to the labels of
  all earlier lines, mean over q; [0, 1]. A head without any attention to labels counts as 0.
- pattern_matching_attention: the same, not divided; [0, 1].
- pattern_matching_chance: what `pattern_matching` is for a head that attends to all earlier labels alike.

The paper's head attends to the right lines for about 0.65 where chance is about 0.25. The first 8,192 tokens' worth of
held-out rows, cut at 512 tokens. Source: Olsson et al. 2022, Argument 4, "Behavior 3: Pattern matching". Departures:
the corpus (see `icl_jax.data.corpora.patterns`) is what the model was trained on; labels alone count as keys, and the
query is the word before the label, whose token holds the colon as well.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from icl_jax.data.corpora.kinds.pairs import Patterns
from icl_jax.data.corpora.patterns import PatternsCorpus
from icl_jax.maths.activations import patterns
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot

_MAX_CTX = 512
_TOKENS = 2**13


_LABELS_OF_LINES = (PatternsCorpus.label_names, Patterns.labels)
"""Of the corpora that have such lines: new classes, seen ones, seen words, known labels."""
_CLASS_SEEN = 1 + PatternsCorpus.label_names.index("class_seen")


class _Lines(NamedTuple):
    """Tokens, and which keys count."""

    tokens: Int[np.ndarray, "B T"]
    same: Bool[np.ndarray, "B T T"]
    labels: Bool[np.ndarray, "B T T"]


def label_keys(
    rows: Int[np.ndarray, "B tokens"], shown: UInt8[np.ndarray, "B tokens"]
) -> tuple[Bool[np.ndarray, "B T T"], Bool[np.ndarray, "B T T"]]:
    """Keys that hold the label which the query is to predict, and keys that hold any label: [row, query, key].

    Both are empty unless the next token is a label of "class_seen" (`shown`: the corpus's labels). Lines of a row have
    the same label exactly if they are of the same pair of classes.
    """
    is_query = shown[:, 1:, None] == _CLASS_SEEN
    earlier = np.tri(rows.shape[1] - 1, k=-1, dtype=bool) & (shown[:, None, :-1] > 0) & is_query
    return earlier & (rows[:, 1:, None] == rows[:, None, :-1]), earlier


def pattern_matching(
    pattern: Float[Array, "B H T T"], same: Bool[Array, "B T T"], labels: Bool[Array, "B T T"]
) -> tuple[Float[Array, " H"], Float[Array, " H"]]:
    """The normalised and the plain score of every head, on keys of `label_keys`. NaN if no query has any."""
    to_same, to_any = (jnp.sum(jnp.where(keys[:, None], pattern, 0.0), axis=-1) for keys in (same, labels))
    n_queries = jnp.sum(jnp.any(same, axis=-1), dtype=pattern.dtype)
    share = jnp.where(to_any > 0, to_same / jnp.where(to_any > 0, to_any, 1.0), 0.0)
    return jnp.sum(share, axis=(0, 2)) / n_queries, jnp.sum(to_same, axis=(0, 2)) / n_queries


def look(at: Snapshot, tokens: jax.Array, same: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    scores = [pattern_matching(pattern, same, labels) for pattern in patterns(at.params, tokens, at.config)]
    share, attention = (jnp.stack(values) for values in zip(*scores, strict=True))
    return {"pattern_matching": share, "pattern_matching_attention": attention}


def _lines(context: Context) -> _Lines:
    assert context.labels is not None
    # Labels of both corpora by the numbers of the first; rows of other kinds have none.
    number_of = np.zeros(1 + len(context.label_names), np.uint8)
    for i, name in enumerate(context.label_names):
        of_corpora = [names.index(name) for names in _LABELS_OF_LINES if name in names]
        number_of[1 + i] = 1 + of_corpora[0] if of_corpora else 0
    every = number_of[context.labels]
    n_ctx = min(context.config.model.n_ctx, _MAX_CTX)
    at = np.flatnonzero(every.any(axis=1))[: max(1, _TOKENS // n_ctx)]
    rows, shown = (array[at, : n_ctx + 1] for array in (context.held_out, every))
    return _Lines(rows[:, :-1], *label_keys(rows, shown))


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    lines = _lines(context)
    n_same, n_labels = (keys.sum(axis=-1)[lines.same.any(axis=-1)] for keys in (lines.same, lines.labels))
    return seen | {"pattern_matching_chance": np.full(len(seen["pattern_matching"]), np.mean(n_same / n_labels))}


def why_not(context: Context) -> str | None:
    if not any(set(names) <= set(context.label_names) for names in _LABELS_OF_LINES):
        return f"the corpus has no classes of words; data.source = {context.config.data.source!r}"
    if not _lines(context).same.any():
        return f"n_ctx = {context.config.model.n_ctx}: too short for two lines of the same classes"
    return needs_layers(context)


_HEAD = ("layer", "head")

MEASUREMENT = Measurement(
    name="pattern_matching",
    source="Olsson et al. 2022, Argument 4, Pattern matching",
    variables={
        "pattern_matching": Variable(
            _HEAD, "1", "share of attention to earlier labels that lies on those of the line's classes; [0, 1]",
        ),
        "pattern_matching_attention": Variable(
            _HEAD, "attention", "from the word before a label to labels of earlier lines of the same classes; [0, 1]",
        ),
        "pattern_matching_chance": Variable((), "1", "pattern_matching of uniform attention to labels; [0, 1]"),
    },
    look=look,
    finish=finish,
    reads=_lines,
    why_not=why_not,
)  # fmt: skip
