"""The ICL score of the corpus itself, where it is known, and the model's against it.

The floor is -log P of each held-out token given all before it, under what the rows were drawn from: of `stories` and
`mixture` the grammar of held-out rows; of `markov` Bayes' rule for chains drawn from Dirichlet(1, …, 1)
(`markov_strategies`). No model has a lower loss on average, but one may have a lower score: a model that is surprised
early by what training never had, as by the held-out names of `stories`. Late minus early over windows, as
`icl_windowed`.

- floor_icl: windowed ICL score of the floor on the held-out rows, nats; floor_icl_sem: its standard error over rows.
- icl_over_floor: icl_windowed - floor_icl on the same rows; icl_over_floor_sem: its standard error, row by row.

Source: ours.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr

from icl_jax.data.corpora.markov import MarkovOptions
from icl_jax.data.corpora.mixture import MixtureCorpus
from icl_jax.data.corpora.stories import StoriesCorpus
from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures.icl import standard_error
from icl_jax.measures.markov_strategies import strategies
from icl_jax.measures.measurement import Context, Derived, UndefinedError, Variable


def _by_grammar(kind: type[MixtureCorpus | StoriesCorpus], context: Context) -> np.ndarray | None:
    """-log P [row, T] of what the rows were drawn from; None for rows that are not this version's."""
    corpus, n_rows = kind(context.config), len(context.held_out)
    if not np.array_equal(corpus.held_out(n_rows), context.held_out):
        return None
    return corpus.held_out_hidden(n_rows)[:, 1:].astype(np.float64)


def _markov(context: Context) -> np.ndarray | None:
    """-log of what Bayes' rule says [row, T]; uniform until there is a context."""
    options = context.config.data.options_of(MarkovOptions)
    if options.prior != "dirichlet":
        return None
    n_states = context.config.model.vocab_size - 1
    states = context.held_out[:, 1:].astype(np.int64) - 1
    said = np.full((*states.shape, n_states), 1 / n_states)
    said[:, 1:] = strategies(states[:, :-1], n_states, options.order)[-1]
    return -np.log(np.take_along_axis(said, states[..., None], axis=2)[..., 0])


FLOORS: dict[str, Callable[[Context], np.ndarray | None]] = {
    "stories": partial(_by_grammar, StoriesCorpus),
    "mixture": partial(_by_grammar, MixtureCorpus),
    "markov": _markov,
}
"""By `data.source`: the least loss [row, T] of the held-out rows, nats."""


def why_not(context: Context) -> str | None:
    source = context.config.data.source
    if source not in FLOORS:
        return f"what no model can do better is known of {' and '.join(FLOORS)}; data.source = {source!r}"
    return None


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    floor = FLOORS[context.config.data.source](context)
    if floor is None:
        raise UndefinedError("it is not known of these held-out rows")
    by_row = icl_windowed(floor)
    over = dataset["row_icl"].values.astype(np.float64) - by_row
    return {
        "floor_icl": np.asarray(by_row.mean()),
        "floor_icl_sem": standard_error(by_row[None])[0],
        "icl_over_floor": over.mean(axis=1),
        "icl_over_floor_sem": standard_error(over),
    }


_ONE = "a single held-out row"

DERIVED = Derived(
    name="icl_floor",
    source="ours",
    needs=("row_icl",),
    variables={
        "floor_icl": Variable((), "nats", "windowed ICL score of what the held-out rows were drawn from"),
        "floor_icl_sem": Variable((), "nats", "its standard error over rows", _ONE),
        "icl_over_floor": Variable(("snapshot",), "nats", "icl_windowed less floor_icl, on the same rows"),
        "icl_over_floor_sem": Variable(("snapshot",), "nats", "its standard error over rows", _ONE),
    },
    derive=derive,
    why_not=why_not,
)
