"""A control: all induction heads ablated at once, against as many other heads of the same layers, drawn at random.

Heads that stand in for each other look weak one at a time. The set: heads with a prefix matching of 0.4 and more at the
snapshot. Three draws of others (all of them, where a layer has fewer). Their results are zero, patterns as in the
intact run. Effects are those on the windowed ICL score, nats, positive: in-context learning needs them; on the first
half of the ablations' rows, with the standard error over rows. Source: ours, after Olsson et al. 2022, Argument 3.
"""

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.maths import head_scores
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures.ablation import ablate_sets, matched_sets
from icl_jax.measures.head_scores import why_not
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.shuffled_context import control_rows
from icl_jax.measures.snapshot import Snapshot

N_DRAWS = 3


def look(at: Snapshot, rows: jax.Array, order: jax.Array) -> dict[str, jax.Array]:
    tokens = at.repeated.tokens
    matching = at.repeated.each_layer(
        ("pattern",), lambda seen, _params: head_scores.prefix_matching(seen["pattern"], tokens)
    )
    chosen = matching >= np.float32(HEAD_THRESHOLD)
    sets = jnp.concatenate([jnp.zeros_like(chosen)[None], chosen[None], matched_sets(chosen, order)])
    loss_ABT = ablate_sets(at.params, rows, at.config, sets, "pattern_preserving")
    ablated = jnp.moveaxis(loss_ABT[1:], 0, 1)
    return {"intact": loss_ABT[0], "ablated": ablated, "n": jnp.sum(sets[1:], axis=(1, 2))}


def finish(_context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    effect_SBA = icl_windowed(seen["ablated"]) - icl_windowed(seen["intact"])[..., None]
    n_rows, n_heads = effect_SBA.shape[1], seen["n"]
    mean = np.where(n_heads > 0, effect_SBA.mean(axis=1), np.nan)
    error = effect_SBA.std(axis=1, ddof=1) / np.sqrt(n_rows) if n_rows > 1 else np.full(mean.shape, np.nan)
    error = np.where(n_heads > 0, error, np.nan)
    return {
        "set_n": n_heads[:, 0], "set_icl_effect": mean[:, 0], "set_icl_effect_sem": error[:, 0],
        "random_set_n": n_heads[:, 1], "random_set_icl_effect": mean[:, 1:], "random_set_icl_effect_sem": error[:, 1:],
    }  # fmt: skip


def _reads(context: Context) -> tuple[np.ndarray, ...]:
    model = context.config.model
    order = np.random.default_rng([context.seed, 4]).random((N_DRAWS, model.n_layers, model.n_heads), np.float32)
    return control_rows(context), order


_NO_HEAD, _NO_OTHER = "no head matches prefixes from 0.4 on", "there is no such head, or no other in its layer"

MEASUREMENT = Measurement(
    name="set_ablation",
    source="ours; after Olsson et al. 2022, Argument 3",
    variables={
        "set_n": Variable((), "1", "induction heads that are ablated at once"),
        "set_icl_effect": Variable((), "nats", "windowed ICL score without all of them, minus with", _NO_HEAD),
        "set_icl_effect_sem": Variable((), "nats", "its standard error over rows", _NO_HEAD),
        "random_set_n": Variable((), "1", "other heads of the same layers that are ablated at once"),
        "random_set_icl_effect": Variable(("draw",), "nats", "the same of these heads, by draw", _NO_OTHER),
        "random_set_icl_effect_sem": Variable(("draw",), "nats", "its standard error over rows", _NO_OTHER),
    },
    look=look,
    finish=finish,
    reads=_reads,
    why_not=why_not,
    on_few=True,
)
