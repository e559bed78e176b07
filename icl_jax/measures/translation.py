"""Translation heads: attention from before a foreign word to the native word that it translates.

On rows of translation of the `mixture` corpus, with q the position before a foreign word, and k the places in the same
story of the native word that it translates:

- translation_attention: sum over k of A[q, k], mean over q; [0, 1]. The words of the two languages stand in different
  orders, so that this is the paper's wandering, off-diagonal pattern: attention to what comes next in the other
  language's order.
- translation_chance: the same of uniform attention.

Up to 64 rows. Source: Olsson et al. 2022, Argument 4, "Behavior 2: Translation" (attention shown for one text).
Departure: rows of the model's own corpus, whose dictionary says which word is which.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icl_jax.data.corpora.kinds.kind import END
from icl_jax.data.corpora.mixture import MixtureCorpus
from icl_jax.maths.activations import Activations
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot

_MAX_ROWS = 64
_LABEL = "translation"


def translated_keys(
    rows: Int[np.ndarray, "B tokens"], is_asked: Bool[np.ndarray, "B tokens"], native_of: dict[int, int], end: int
) -> Bool[np.ndarray, "B T T"]:
    """[row, query, key]: keys of the query's story that hold the native word of the next token, where it is asked."""
    story = np.cumsum(rows == end, axis=1)
    right = np.vectorize(lambda token: native_of.get(token, -1))(rows[:, 1:])
    queries, keys = rows.shape[1] - 1, rows[:, None, :-1]
    is_earlier = np.tri(queries, dtype=bool)
    same_story = story[:, :-1, None] == story[:, None, :-1]
    return (keys == right[:, :, None]) & is_earlier & same_story & is_asked[:, 1:, None]


def _reads(context: Context) -> tuple[np.ndarray, np.ndarray]:
    assert context.labels is not None
    corpus = MixtureCorpus(context.config)
    is_asked = context.labels == 1 + context.label_names.index(_LABEL)
    rows = np.flatnonzero(is_asked.any(axis=1))[:_MAX_ROWS]
    native, foreign = corpus.dictionary()
    native_of = dict(zip(foreign.tolist(), native.tolist(), strict=True))
    (end,) = corpus.ids((END,)).tolist()
    held_out = context.held_out[rows]
    return held_out[:, :-1], translated_keys(held_out, is_asked[rows], native_of, end)


def look(at: Snapshot, tokens: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
    def some_rows(tokens: Int[Array, "B T"], keys: Bool[Array, "B T T"]) -> Float[Array, "B N H"]:
        seen = Activations(at.params, tokens, at.config, ("pattern",)).of_layers("pattern")
        return jnp.stack([jnp.sum(jnp.where(keys[:, None], p, 0.0), axis=(2, 3)) for p in seen], axis=1)

    n_queries = jnp.sum(jnp.any(keys, axis=2), dtype=jnp.float32)
    return {"translation_attention": jnp.sum(map_rows(some_rows, tokens, keys, n_at_a_time=8), axis=0) / n_queries}


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    keys = _reads(context)[1]
    is_query = keys.any(axis=2)
    share = (keys.sum(axis=2) / (1 + np.arange(keys.shape[1])))[is_query]
    return seen | {"translation_chance": np.full(len(seen["translation_attention"]), share.mean(), np.float32)}


def why_not(context: Context) -> str | None:
    if context.config.data.source != "mixture" or _LABEL not in context.label_names:
        return f"the corpus has no stories in two languages; data.source = {context.config.data.source!r}"
    if not _reads(context)[1].any():
        return f"n_ctx = {context.config.model.n_ctx}: too short for a story told twice"
    return needs_layers(context)


MEASUREMENT = Measurement(
    name="translation",
    source="Olsson et al. 2022, Argument 4, Translation",
    variables={
        "translation_attention": Variable(
            ("layer", "head"), "attention", "from before a foreign word to the native word it translates; [0, 1]"
        ),
        "translation_chance": Variable((), "attention", "the same of uniform attention; [0, 1]"),
    },
    look=look,
    finish=finish,
    reads=_reads,
    why_not=why_not,
)
