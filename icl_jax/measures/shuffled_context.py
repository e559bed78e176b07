"""A control: the ICL score on held-out rows whose tokens stand in random order, so that there is nothing to learn from.

Each row keeps its BOS and its tokens, in an order of its own that is the same at all snapshots. On the first half of
the ablations' rows. `shuffled_icl`: the windowed score, nats; what can be learned from the order is gone, and what is
left is how often each token occurs. `shuffled_icl_sem`: its standard error over rows. Source: ours.
"""

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.snapshot import Snapshot, predictions


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows with the tokens after BOS in random order."""
    rng = np.random.default_rng([seed, 3])
    return np.concatenate([rows[:, :1], rng.permuted(rows[:, 1:], axis=1)], axis=1)


def control_rows(context: Context) -> np.ndarray:
    """The first half of the ablations' rows, two at least where there are."""
    return context.held_out[: max(2, context.n_ablation_rows // 2)]


def look(at: Snapshot, rows: jax.Array) -> dict[str, jax.Array]:
    return {"loss": jnp.asarray(predictions(at.params, rows, at.config)[0])}


def finish(_context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    return mean_and_error("shuffled_icl", icl_windowed(seen["loss"]))


def mean_and_error(name: str, by_row: np.ndarray) -> Arrays:
    """[S, row] values as `name` and `name`_sem; the error of a single row is NaN."""
    n_rows = by_row.shape[1]
    error = by_row.std(axis=1, ddof=1) / np.sqrt(n_rows) if n_rows > 1 else np.full(len(by_row), np.nan)
    return {name: by_row.mean(axis=1), f"{name}_sem": error}


MEASUREMENT = Measurement(
    name="shuffled_context",
    source="ours",
    variables={
        "shuffled_icl": Variable((), "nats", "windowed ICL score of rows with their tokens in random order"),
        "shuffled_icl_sem": Variable((), "nats", "its standard error over rows", "a single held-out row"),
    },
    look=look,
    finish=finish,
    reads=lambda context: (shuffled(control_rows(context), context.seed),),
    on_few=True,
)
