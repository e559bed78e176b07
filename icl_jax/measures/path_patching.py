"""Path patching: what one head tells another through its queries, its keys or its values.

For a sender s and a receiver r in a later layer, through one of q, k, v, on clean and corrupted rows:

1. The model runs on the clean and on the corrupted rows.
2. On the clean rows, the output `z` of s is that of the corrupted rows, and of every other head the clean one: no other
   head's pattern or values respond. What s writes reaches r through the residual stream, norms and MLPs, which are
   computed anew (with `mlps="frozen"` MLPs write what they did on the clean rows). The queries, keys or values that r
   computes from it are kept.
3. On the clean rows r is given these, and everything from r on is computed anew, the patterns of later heads too.

The path's effect is the metric in 3. less that of the clean rows. `path_to_logits` ends in 2.: what s does to the
logits directly and through MLPs. In place of the corrupted rows' output, s may be given zeros (`source="zero"`).

Exact for every architecture here: queries and keys are those after biases, norms, rotation, offset and smearing; a norm
of what attention writes is of the sum with the new output; keys and values that heads share are r's own alone.

Source: Wang et al. 2022 (IOI), section 3.1 and appendix B; Goldowsky-Dill et al. 2023, whose edges MLPs are nodes of
(`mlps="frozen"`).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from icl_jax.config import ModelConfig, UserError
from icl_jax.maths.activations import AnyParams, as_jax
from icl_jax.measures.activation_patching import as_dataset, mean_and_sem
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.passes import check_heads
from icl_jax.measures.path_runs import (
    THROUGH,
    Edges,
    Heads,
    logit_path_metric,
    path_metric,
    set_path_metric,
)  # fmt: skip
from icl_jax.measures.snapshot import Snapshot
from icl_jax.measures.token_pairs import PairArrays, TokenPairs, needs_pairs, reads_pairs

# Beyond, pairs are too many: 32 in each of two layers are 3,072 paths.
_MOST_HEADS = 64


_compiled, _compiled_sets, _compiled_to_logits = (
    jax.jit(fn, static_argnums=(2, 3, 4)) for fn in (path_metric, set_path_metric, logit_path_metric)
)


def path_patching(
    params: AnyParams, pairs: TokenPairs, config: ModelConfig, senders: Sequence[tuple[int, int]] | None = None,
    receivers: Sequence[tuple[int, int]] | None = None, *, through: Sequence[str] = THROUGH,
    metric: str = "loss", source: str = "corrupted", mlps: str = "recomputed", together: bool = False,
) -> xr.Dataset:  # fmt: skip
    """The metric with each path patched: `patched` [through, sender, receiver, row], `clean` and `corrupted` [row].

    Heads are (layer, head), default all; `sender_layer`, `sender_head` and so on are coordinates. NaN where a receiver
    is not in a later layer than the sender. `share`: what the path does, as a part of what the corrupted rows do.
    together: all paths from a sender to a receiver at once, `patched` [through, row]: heads that stand in for each
    other are weak one by one. A pass for each path and row; some 4,096 tokens are computed at a time. Raises UserError
    for heads that are not there,
    for none, and where no receiver is in a later layer than any sender.
    """
    edges = check_edges(config, senders, receivers, through, source, mlps)
    arrays = pairs.arrays(config, metric)
    if together:
        members = (jnp.asarray(_members(heads, config))[None] for heads in (edges.senders, edges.receivers))
        anonymous = edges._replace(senders=(), receivers=())
        found = _compiled_sets(as_jax(params), arrays, config, anonymous, metric, *members)
        found["patched"] = found["patched"][:, 0]
        return _named(found, edges, metric, ("through",), "paths patched together")
    found = _compiled(as_jax(params), arrays, config, edges, metric)
    return _named(found, edges, metric, ("through", "sender", "receiver"), "path patched")


def _members(heads: Heads, config: ModelConfig) -> np.ndarray:
    found = np.zeros((config.n_layers, config.n_heads), bool)
    found[tuple(np.transpose(heads))] = True
    return found


def path_to_logits(
    params: AnyParams, pairs: TokenPairs, config: ModelConfig, senders: Sequence[tuple[int, int]] | None = None, *,
    metric: str = "loss", source: str = "corrupted", mlps: str = "recomputed",
) -> xr.Dataset:  # fmt: skip
    """The same of the paths that reach the logits through no other head: `patched` [sender, row]."""
    edges = Edges(tuple(check_heads(senders, "senders", config)), (), (), source, mlps)
    check_kinds(edges)
    found = _compiled_to_logits(as_jax(params), pairs.arrays(config, metric), config, edges, metric)
    return _named(found, edges, metric, ("sender",), "path to the logits patched")


def check_edges(
    config: ModelConfig, senders: Sequence[tuple[int, int]] | None, receivers: Sequence[tuple[int, int]] | None,
    through: Sequence[str] = THROUGH, source: str = "corrupted", mlps: str = "recomputed",
) -> Edges:  # fmt: skip
    """Paths that there are. Raises UserError for others."""
    found = Edges(
        tuple(check_heads(senders, "senders", config)), tuple(check_heads(receivers, "receivers", config)),
        tuple(through), source, mlps,
    )  # fmt: skip
    if not found.through or not set(found.through) <= set(THROUGH):
        raise UserError(f"through = {list(through)}: must be one or more of q, k, v")
    first, last = min(layer for layer, _ in found.senders), max(layer for layer, _ in found.receivers)
    if last <= first:
        raise UserError(
            f"receivers: the last is in layer {last}, the first sender in layer {first}: a receiver reads what was "
            "written in an earlier layer"
        )
    check_kinds(found)
    return found


def check_kinds(edges: Edges) -> None:
    """Raise UserError for a source or a treatment of MLPs that there is not."""
    if edges.source not in ("corrupted", "zero"):
        raise UserError(f"source = {edges.source!r}: must be corrupted or zero")
    if edges.mlps not in ("recomputed", "frozen"):
        raise UserError(f"mlps = {edges.mlps!r}: must be recomputed or frozen")


def _named(found: dict[str, jax.Array], edges: Edges, metric: str, dims: tuple[str, ...], text: str) -> xr.Dataset:
    return as_dataset(np.asarray(found["patched"]), dims, named_edges(edges, dims), found, metric, "clean", text)


def named_edges(edges: Edges, dims: tuple[str, ...]) -> dict[str, Any]:
    """Coordinates of what is along these axes."""
    coords: dict[str, Any] = {"through": list(edges.through)} if "through" in dims else {}
    for name, heads in (("sender", edges.senders), ("receiver", edges.receivers)):
        if name in dims:
            coords[name] = [f"{layer}.{head}" for layer, head in heads]
            coords[f"{name}_layer"] = (name, np.asarray([layer for layer, _ in heads]))
            coords[f"{name}_head"] = (name, np.asarray([head for _, head in heads]))
    return coords


def all_edges(config: ModelConfig) -> Edges:
    """All pairs of heads, through q, k and v."""
    heads = tuple(check_heads(None, "heads", config))
    return Edges(heads, heads)


def look(at: Snapshot, *arrays: jax.Array) -> dict[str, jax.Array]:
    pairs, config = PairArrays(*arrays), at.config
    found = path_metric(at.params, pairs, config, all_edges(config), "loss")
    src, dst = layer_pairs(config)
    layers = np.broadcast_to(np.arange(config.n_layers)[:, None], (config.n_layers, config.n_heads))
    members = (jnp.asarray(layers[None] == np.array(of)[:, None, None]) for of in (src, dst))
    sets = set_path_metric(at.params, pairs, config, Edges((), ()), "loss", *members)
    clean = found["clean"]
    return {
        "effect": found["patched"] - clean[None, None, None], "layers": sets["patched"] - clean[None, None],
        "all": jnp.mean(found["corrupted"] - clean),
    }  # fmt: skip


def layer_pairs(config: ModelConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """All pairs of a layer and a later one."""
    src, dst = np.triu_indices(config.n_layers, k=1)
    return tuple(int(i) for i in src), tuple(int(i) for i in dst)


def by_pair(effect: np.ndarray, config: ModelConfig) -> np.ndarray:
    """[..., sender, receiver] of all heads as [..., layer_src, head_src, layer_dst, head_dst]."""
    return effect.reshape(*effect.shape[:-2], *(config.n_layers, config.n_heads) * 2)


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    model = context.config.model
    found = {"path_all_effect": seen["all"]}
    src, dst = layer_pairs(model)
    for heads, layers, suffix in zip(*map(mean_and_sem, (seen["effect"], seen["layers"])), ("", "_sem"), strict=True):
        by_layer = np.full((*layers.shape[:2], model.n_layers, model.n_layers), np.nan, np.float32)
        by_layer[:, :, src, dst] = layers
        for i, name in enumerate(THROUGH):
            found[f"{name}_path_effect{suffix}"] = by_pair(heads, model)[:, i]
            found[f"{name}_layer_effect{suffix}"] = by_layer[:, i]
    return found


def needs_pairs_of_heads(context: Context) -> str | None:
    """A `why_not` for measurements of paths between heads."""
    model = context.config.model
    if model.n_layers == 1:
        return "a path needs a head in an earlier layer; model.n_layers = 1"
    return needs_pairs(context)


def _why_not(context: Context) -> str | None:
    n_heads = context.config.model.n_layers * context.config.model.n_heads
    if n_heads > _MOST_HEADS:
        return (
            f"the paths between {n_heads} heads are too many: icl_jax.analysis.path_patching takes those of your choice"
        )
    return needs_pairs_of_heads(context)


PAIR = ("layer_src", "head_src", "layer_dst", "head_dst")
LATER = "only a head in a later layer reads what another wrote"
READS = {"q": "queries", "k": "keys", "v": "values"}

MEASUREMENT = Measurement(
    name="path_patching",
    source="Wang et al. 2022, section 3.1; Olsson et al. 2022, Argument 3",
    variables={
        **{
            name + suffix: variable
            for letter, reads in READS.items()
            for name, dims, text in (
                (
                    f"{letter}_path_effect", PAIR,
                    f"loss of repeats where the {reads} of head_dst are told what head_src says on rows without "
                    "repeats, less as they are",
                ),
                (
                    f"{letter}_layer_effect", ("layer_src", "layer_dst"),
                    f"the same of all heads of two layers at once, through their {reads}",
                ),
            )
            for suffix, variable in (
                ("", Variable(dims, "nats", text, LATER)),
                ("_sem", Variable(dims, "nats", f"standard error of {name} over rows", LATER)),
            )
        },
        "path_all_effect": Variable((), "nats", "loss of rows without repeats less that of repeats"),
    },
    look=look,
    finish=finish,
    reads=reads_pairs,
    why_not=_why_not,
    on_few=True,
    on_request=True,
)  # fmt: skip
