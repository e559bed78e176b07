"""Attribution patching: what a patch would do, from the gradient, for all patches at once.

To first order an activation a that becomes a' moves the metric by ``(a' - a) . d metric / d a``: one run forwards and
backwards for all layers, heads and positions, where exact patching takes a run for each. Of paths the same holds of
both steps of `icl_jax.measures.path_patching`: the derivative of a receiver's queries, keys or values in the direction
of the sender's change (other heads' outputs held, norms and MLPs followed), times the gradient at them.

Exact where the metric is linear in the patch. Where attention saturates it is not: of the hand-built model, whose
pattern is 0 or 1 to the last bit, every path through keys has attribution 0 and effect ln V. So its correlation with
the exact effects is measured beside it (`agreement`).

Source: Nanda 2023, "Attribution Patching: Activation Patching at Industrial Scale"; Syed et al. 2023 (edges; there MLPs
are nodes of their own, here `mlps="frozen"`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Float

from icl_jax.config import ModelConfig, UserError
from icl_jax.maths.activations import AnyParams, as_jax
from icl_jax.measures.activation_patching import AXES, check_into, check_tap, row_tokens
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.passes import Passes, by_rows
from icl_jax.measures.path_patching import (
    LATER,
    PAIR,
    READS,
    all_edges,
    by_pair,
    check_edges,
    named_edges,
    needs_pairs_of_heads,
)  # fmt: skip
from icl_jax.measures.path_runs import THROUGH, Direct, Edges
from icl_jax.measures.snapshot import Snapshot
from icl_jax.measures.token_pairs import UNITS, PairArrays, TokenPairs, metric_fn, reads_pairs
from icl_jax.model.params import Params
from icl_jax.model.precision import einsum


def attributed(
    params: Params, pairs: PairArrays, config: ModelConfig, tap: str, metric: str, into: str
) -> dict[str, jax.Array]:
    """ "effect" [layer, position, head, row]; an activation without heads has one."""
    head_axis, position_axis = AXES[tap]
    n_ctx = pairs.clean.shape[1]

    def some_rows(pairs: PairArrays) -> dict[str, jax.Array]:
        passes, of_resid = Passes(params, config, n_ctx), metric_fn(params, pairs, config, metric)
        base, other = (pairs.clean, pairs.corrupted) if into == "clean" else (pairs.corrupted, pairs.clean)
        values, gradients = passes.gradients(base, (tap,), of_resid)
        new = passes.intact(other, (tap,))[1][tap]
        # What is not seen is minus infinity in both.
        change = jnp.where(jnp.isfinite(new), new - values[tap], 0)
        effect = jnp.asarray(change, jnp.float32) * jnp.asarray(gradients[tap], jnp.float32)
        # The layer is in front, the row behind it.
        kept = (0, position_axis + 1, *(() if head_axis is None else (head_axis + 1,)), 1)
        total = jnp.sum(effect, axis=tuple(axis for axis in range(effect.ndim) if axis not in kept))
        order = np.argsort(np.argsort(kept))
        total = jnp.transpose(total, tuple(int(i) for i in order))
        return {"effect": total if head_axis is not None else total[:, :, None]}

    found: dict[str, jax.Array] = by_rows(some_rows, pairs, row_tokens(tap, n_ctx))
    return found


def attributed_paths(
    params: Params, pairs: PairArrays, config: ModelConfig, edges: Edges, metric: str
) -> dict[str, jax.Array]:
    """ "effect" [through, sender, receiver, row]: NaN where the receiver is not in a later layer."""
    layers = sorted({layer for layer, _ in edges.receivers})
    at = jnp.asarray([layers.index(layer) for layer, _ in edges.receivers])
    heads = jnp.asarray([head for _, head in edges.receivers])

    def some_rows(pairs: PairArrays) -> dict[str, jax.Array]:
        direct, of_resid = Direct(params, pairs, config, edges), metric_fn(params, pairs, config, metric)
        passes = direct.passes
        _, gradients = passes.gradients(pairs.clean, edges.through, of_resid)

        def of_sender(layer: Any, head: Any) -> jax.Array:
            clean, new = direct.change(layer, head)

            def told(z_BTE: jax.Array) -> jax.Array:
                """The gradient along what each head of a layer is told, [layer, through, row, head]: linear in it."""
                streams, _ = direct.streams(layer, head, z_BTE)

                def of_layer(index: Any) -> jax.Array:
                    seen = passes.seen_at(streams[index], index, edges.through)
                    parts = [einsum("BHTE,BHTE->BH", seen[name], gradients[name][index]) for name in edges.through]
                    return jnp.stack(parts).astype(jnp.float32)

                return passes.map_layers(of_layer, layers)

            _, effect_LXBH = jax.jvp(told, (clean,), (new - clean,))
            later = jnp.asarray(layers)[at] > layer
            effect_RXB = jnp.moveaxis(effect_LXBH, -1, 1)[at, heads]
            return jnp.where(later[:, None, None], effect_RXB, jnp.nan)

        effect_SRXB = passes.map_heads(of_sender, edges.senders)
        return {"effect": jnp.moveaxis(effect_SRXB, 2, 0)}

    found: dict[str, jax.Array] = by_rows(some_rows, pairs)
    return found


_compiled = jax.jit(attributed, static_argnums=(2, 3, 4, 5))
_compiled_paths = jax.jit(attributed_paths, static_argnums=(2, 3, 4))


def attribution_patching(
    params: AnyParams, pairs: TokenPairs, config: ModelConfig, tap: str = "z", *, metric: str = "loss",
    into: str = "clean",
) -> xr.DataArray:  # fmt: skip
    """What each patch of `activation_patching` would change the metric by: [layer, position, head, row].

    An activation without heads lacks that axis. Of positions or heads patched together it is the sum. Gradients of a
    whole run are held for some 4,096 tokens at a time. Raises UserError for what the model lacks.
    """
    check_tap(tap, config)
    check_into(into)
    found = _compiled(as_jax(params), pairs.arrays(config, metric), config, tap, metric, into)
    has_heads = AXES[tap][0] is not None
    dims = ("layer", "position", "head", "row") if has_heads else ("layer", "position", "row")
    effect = np.asarray(found["effect"]) if has_heads else np.asarray(found["effect"])[:, :, 0]
    attrs = {"units": UNITS[metric], "long_name": f"{metric}, {tap} patched less not, to first order"}
    coords = {name: np.arange(size) for name, size in zip(dims[:-1], effect.shape[:-1], strict=True)}
    return xr.DataArray(effect, coords, dims, attrs=attrs)


def path_attribution(
    params: AnyParams, pairs: TokenPairs, config: ModelConfig, senders: Sequence[tuple[int, int]] | None = None,
    receivers: Sequence[tuple[int, int]] | None = None, *, through: Sequence[str] = THROUGH,
    metric: str = "loss", source: str = "corrupted", mlps: str = "recomputed",
) -> xr.DataArray:  # fmt: skip
    """What each path of `path_patching` would change the metric by: [through, sender, receiver, row].

    Takes a run forwards and backwards, and for each sender a derivative forwards through what lies behind it, without
    attention. Raises UserError as `path_patching` does.
    """
    edges = check_edges(config, senders, receivers, through, source, mlps)
    found = _compiled_paths(as_jax(params), pairs.arrays(config, metric), config, edges, metric)
    attrs = {"units": UNITS[metric], "long_name": f"{metric}, path patched less not, to first order"}
    dims = ("through", "sender", "receiver")
    return xr.DataArray(np.asarray(found["effect"]), named_edges(edges, dims), (*dims, "row"), attrs=attrs)


def agreement(exact: Float[np.ndarray, "..."], cheap: Float[np.ndarray, "..."]) -> float:
    """Pearson correlation of the exact effects of patches with the attributed ones.

    Patches that are NaN in either, for instance no path, are left out. NaN for fewer than two, or without spread.
    """
    if exact.shape != cheap.shape:
        raise UserError(f"cheap has the shape {cheap.shape}: must have that of exact, {exact.shape}")
    both = np.isfinite(exact) & np.isfinite(cheap)
    x, y = exact[both].astype(np.float64), cheap[both].astype(np.float64)
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def look(at: Snapshot, *arrays: jax.Array) -> dict[str, jax.Array]:
    pairs = PairArrays(*arrays)
    heads = attributed(at.params, pairs, at.config, "z", "loss", "clean")["effect"]
    paths = attributed_paths(at.params, pairs, at.config, all_edges(at.config), "loss")["effect"]
    return {"heads": jnp.mean(jnp.sum(heads, axis=1), axis=-1), "paths": jnp.mean(paths, axis=-1)}


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    paths = by_pair(seen["paths"], context.config.model)
    return {"head_attribution": seen["heads"]} | {
        f"{name}_path_attribution": paths[:, i] for i, name in enumerate(THROUGH)
    }


MEASUREMENT = Measurement(
    name="attribution_patching",
    source="Nanda 2023; Syed et al. 2023",
    variables={
        "head_attribution": Variable(("layer", "head"), "nats", "patched_head_effect to first order, by gradient"),
        **{
            f"{name}_path_attribution": Variable(
                PAIR, "nats", f"{name}_path_effect to first order, by gradient", LATER
            )
            for name in READS
        },
    },
    look=look,
    finish=finish,
    reads=reads_pairs,
    why_not=needs_pairs_of_heads,
    on_few=True,
    on_request=True,
)  # fmt: skip
