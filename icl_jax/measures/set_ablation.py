"""A control: all induction heads ablated at once, against as many other heads of the same layers, drawn at random.

Heads that stand in for each other look weak one at a time. The set: heads with a prefix matching of 0.4 and more at the
snapshot. Three draws of others (all of them, where a layer has fewer). Their results are zero, patterns as in the
intact run. Effects are those on the windowed ICL score, nats, positive: in-context learning needs them; on the first
half of the ablations' rows, with the standard error over rows. Source: ours, after Olsson et al. 2022, Argument 3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths import head_scores
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures.head_scores import why_not
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.shuffled_context import control_rows
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.loss import losses
from icl_jax.model.params import Params

N_DRAWS = 3
_ROWS_AT_A_TIME_TOKENS = 2048


def ablate_sets(
    params: Params, rows: Int[Array, "B tokens"], sets: Bool[Array, "A N H"], config: ModelConfig
) -> tuple[Float[Array, "B T"], Float[Array, "B A T"]]:
    """Loss of every token, nats: of the intact model, and without the heads of each set, patterns kept."""

    def some_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        patterns: list[jax.Array] = []

        def keep(_name: str, _layer: int, value: jax.Array) -> jax.Array:
            patterns.append(value)
            return value

        intact = losses(params, rows, config, tap=keep, seen=("pattern",))

        def without(is_out: jax.Array) -> jax.Array:
            def tap(name: str, layer: int, value: jax.Array) -> jax.Array:
                if name == "pattern":
                    return patterns[layer]
                return jnp.where(is_out[layer][None, :, None, None], jnp.zeros((), value.dtype), value)

            return losses(params, rows, config, tap=tap, seen=("pattern", "z"))

        return intact, jnp.moveaxis(jax.lax.map(without, sets), 0, 1)

    n_each = max(1, _ROWS_AT_A_TIME_TOKENS // (rows.shape[1] - 1))
    return map_rows(some_rows, rows, n_at_a_time=n_each)


def matched_sets(chosen: Bool[Array, "N H"], order: Float[Array, "A N H"]) -> Bool[Array, "A N H"]:
    """As many other heads of each layer as are chosen there, the first by `order`; all others where those are fewer."""
    order = jnp.where(chosen[None], jnp.inf, order)
    rank = jnp.argsort(jnp.argsort(order, axis=-1), axis=-1)
    return (rank < jnp.sum(chosen, axis=-1)[None, :, None]) & ~chosen[None]


def look(at: Snapshot, rows: jax.Array, order: jax.Array) -> dict[str, jax.Array]:
    tokens = at.repeated.tokens
    matching = jnp.stack([head_scores.prefix_matching(p, tokens) for p in at.repeated.of_layers("pattern")])
    chosen = matching >= np.float32(HEAD_THRESHOLD)
    sets = jnp.concatenate([chosen[None], matched_sets(chosen, order)])
    intact, ablated = ablate_sets(at.params, rows, sets, at.config)
    return {"intact": intact, "ablated": ablated, "n": jnp.sum(sets, axis=(1, 2))}


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
