"""Controls: heads ablated at once, against as many others.

set_ablation: all induction heads against as many other heads of the same layers, drawn at random.

Heads that stand in for each other look weak one at a time. The set: heads with a prefix matching of 0.4 and more at the
snapshot. Three draws of others (all of them, where a layer has fewer). Their results are zero, patterns as in the
intact run. Effects are those on the windowed ICL score, nats, positive: in-context learning needs them; on the first
half of the ablations' rows, with the standard error over rows. Source: ours, after Olsson et al. 2022, Argument 3.

set_sizes: the 2, 5, 10 and 20 % of all heads that score highest, one head at least, against as many of other kinds:

==============  =======================================================================
induction       the highest prefix matching
previous_token  the highest previous-token score, of the others
same_layers     others of the layers of the first, drawn at random; the mean of three draws
random          others of all layers, drawn at random; the mean of three draws
==============  =======================================================================

There results are zero and everything after them is computed anew, for patterns that are kept would hide what
previous-token heads do. Source: ours; sets of 2 to 20 % of the heads, after Crosbie and Shutova 2024, "Induction Heads
as an Essential Mechanism for Pattern Matching in In-context Learning", and Yin and Steinhardt 2025.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from icl_jax.config import ModelConfig
from icl_jax.maths import head_scores
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures.ablation import ablate_sets, matched_sets
from icl_jax.measures.head_scores import why_not
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.shuffled_context import control_rows
from icl_jax.measures.snapshot import Snapshot

N_DRAWS = 3
SHARES = (0.02, 0.05, 0.1, 0.2)
SET_KINDS = ("induction", "previous_token", "same_layers", "random")


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

SET_ABLATION = Measurement(
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


def n_of_share(share: float, n_layers: int, n_heads: int) -> int:
    """How many heads a share of them is: one at least."""
    return max(1, round(share * n_layers * n_heads))


def top_heads(score: Float[Array, "N H"], k: int) -> Bool[Array, "N H"]:
    """The k heads of highest score; of equal ones the first."""
    _, highest = jax.lax.top_k(score.reshape(-1), k)
    return jnp.zeros(score.size, bool).at[highest].set(True).reshape(score.shape)


def sets_of_size(
    prefix_matching: Float[Array, "N H"], previous_token: Float[Array, "N H"], order: Float[Array, "draw N H"], k: int
) -> Bool[Array, "sets N H"]:
    """k heads of each kind: induction, previous_token, then the draws of same_layers and those of random.

    order: numbers in [0, 1) that the draws go by. Fewer of same_layers where those have no more others.
    """
    chosen = top_heads(prefix_matching, k)
    others = [top_heads(jnp.where(chosen, -jnp.inf, score), k) & ~chosen for score in (previous_token, *order)]
    previous, *random = others
    return jnp.stack([chosen, previous, *matched_sets(chosen, order), *random])


def _sizes(model: ModelConfig) -> list[int]:
    return [n_of_share(share, model.n_layers, model.n_heads) for share in SHARES]


def look_at_sizes(at: Snapshot, rows: jax.Array, order: jax.Array) -> dict[str, jax.Array]:
    tokens, sizes = at.repeated.tokens, _sizes(at.config)
    matching = at.repeated.each_layer(
        ("pattern",), lambda seen, _params: head_scores.prefix_matching(seen["pattern"], tokens)
    )
    previous = at.attention_on_text["previous_token"]
    # Of a small model several shares are one number of heads.
    different = sorted(set(sizes))
    sets_CKNH = jnp.stack([sets_of_size(matching, previous, order, k) for k in different])
    flat = sets_CKNH.reshape(-1, *matching.shape)
    loss = ablate_sets(at.params, rows, at.config, jnp.concatenate([jnp.zeros_like(flat[:1]), flat]))
    ablated_CKBT = loss[1:].reshape(*sets_CKNH.shape[:2], *loss.shape[1:])
    of = jnp.asarray([different.index(k) for k in sizes])
    is_whole = jnp.sum(sets_CKNH, axis=(2, 3)) == jnp.asarray(different)[:, None]
    return {"intact": loss[0], "ablated": ablated_CKBT[of], "is_whole": is_whole[of]}


def finish_sizes(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    """Means over the draws of a kind, then over rows."""
    intact_SBT, ablated_SCKBT = seen["intact"], seen["ablated"]
    effects = {
        "icl": icl_windowed(ablated_SCKBT) - icl_windowed(intact_SBT)[:, None, None],
        "loss": ablated_SCKBT.mean(axis=-1) - intact_SBT.mean(axis=-1)[:, None, None],
    }
    sizes = np.tile(_sizes(context.config.model), (len(intact_SBT), 1))
    found: Arrays = {"set_size": sizes}
    draws = [slice(0, 1), slice(1, 2), slice(2, 2 + N_DRAWS), slice(2 + N_DRAWS, None)]
    for name, effect_SCKB in effects.items():
        effect_SCKB = np.where(seen["is_whole"][..., None], effect_SCKB, np.nan)
        by_kind = np.stack([effect_SCKB[:, :, of].mean(axis=2) for of in draws], axis=2)
        n_rows = by_kind.shape[-1]
        spread = by_kind.std(axis=-1, ddof=1) if n_rows > 1 else np.full(by_kind.shape[:-1], np.nan)
        found |= {f"size_{name}_effect": by_kind.mean(axis=-1), f"size_{name}_effect_sem": spread / np.sqrt(n_rows)}
    return found


_SET = ("set_share", "set_kind")
_FEWER_OTHERS = "the layers of the induction heads, or the model, have fewer other heads"

SET_SIZES = Measurement(
    name="set_sizes",
    source="ours; after Crosbie and Shutova 2024",
    variables={
        "set_size": Variable(("set_share",), "1", "heads that are ablated at once, 2 to 20 % of all, 1 at least"),
        "size_icl_effect": Variable(_SET, "nats", "windowed ICL score without them, minus with", _FEWER_OTHERS),
        "size_icl_effect_sem": Variable(_SET, "nats", "its standard error over rows", _FEWER_OTHERS),
        "size_loss_effect": Variable(_SET, "nats", "mean loss without them, minus with", _FEWER_OTHERS),
        "size_loss_effect_sem": Variable(_SET, "nats", "its standard error over rows", _FEWER_OTHERS),
    },
    look=look_at_sizes,
    finish=finish_sizes,
    reads=_reads,
    why_not=why_not,
    on_few=True,
    on_request=True,
)

MEASUREMENTS = (SET_ABLATION, SET_SIZES)
