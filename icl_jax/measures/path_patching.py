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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from icl_jax.config import ModelConfig, UserError
from icl_jax.maths.activations import AnyParams, as_jax
from icl_jax.measures.activation_patching import as_dataset, mean_and_sem
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.passes import Passes, by_rows, check_heads
from icl_jax.measures.snapshot import Snapshot
from icl_jax.measures.token_pairs import PairArrays, TokenPairs, metric_fn, needs_pairs, reads_pairs
from icl_jax.model.params import Params

THROUGH = ("q", "k", "v")
Heads = tuple[tuple[int, int], ...]
# Beyond, pairs are too many: 32 in each of two layers are 3,072 paths.
_MOST_HEADS = 64


class Edges(NamedTuple):
    """Which paths, and what they are: static to the compiled functions."""

    senders: Heads
    receivers: Heads
    through: tuple[str, ...] = THROUGH
    source: str = "corrupted"
    mlps: str = "recomputed"


class Direct:
    """Step 2 on some rows: the clean run, and the streams that differ from it by one head's output."""

    def __init__(self, params: Params, pairs: PairArrays, config: ModelConfig, edges: Edges) -> None:
        self.passes = Passes(params, config, pairs.clean.shape[1])
        self._frozen = ("z", "mlp_out") if edges.mlps == "frozen" and config.d_mlp else ("z",)
        self.last, self.clean = self.passes.intact(pairs.clean, ("resid_pre", *self._frozen))
        self.corrupted_last, corrupted = self.passes.intact(pairs.corrupted, ("z",))
        self._new_z = corrupted["z"] if edges.source == "corrupted" else jnp.zeros_like(corrupted["z"])

    def change(self, layer: Any, head: Any) -> tuple[jax.Array, jax.Array]:
        """A head's clean output, and the one it is given: [B, T, E]."""
        return self.clean["z"][layer][:, head], self._new_z[layer][:, head]

    def streams(self, layer: Any, head: Any, z_BTE: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The stream entering each layer, [N, B, T, D], and after the last, where this head's output is z."""

        def tap(name: str, index: Any, value: jax.Array) -> jax.Array:
            kept = self.clean[name][index]
            if name != "z" or (isinstance(index, int) and index != layer):
                return kept
            return jnp.where(index == layer, kept.at[:, head].set(z_BTE), kept)

        def one(index: Any, carried: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            resid, streams = carried
            resid = self.passes.layer(resid, index, tap, self._frozen)
            return resid, streams.at[index + 1].set(resid, mode="drop")

        clean = self.clean["resid_pre"]
        carried = clean[layer], clean
        if isinstance(layer, int):
            for index in range(layer, self.passes.n_layers):
                carried = one(index, carried)
        else:
            carried = jax.lax.fori_loop(layer, self.passes.n_layers, one, carried)
        return carried[1], carried[0]


def path_metric(
    params: Params, pairs: PairArrays, config: ModelConfig, edges: Edges, metric: str
) -> dict[str, jax.Array]:
    """The metric of each row: "patched" [through, sender, receiver, row], "clean" and "corrupted" [row].

    NaN where the receiver is not in a later layer than the sender.
    """

    def some_rows(pairs: PairArrays) -> dict[str, jax.Array]:
        direct, of_resid = Direct(params, pairs, config, edges), metric_fn(params, pairs, config, metric)
        passes = direct.passes

        def of_receiver(streams: jax.Array, layer: Any, head: Any) -> jax.Array:
            """Step 3, of each of `through`."""
            new = passes.seen_at(streams[layer], layer, edges.through)

            def one(number: jax.Array) -> jax.Array:
                def tap(name: str, _index: Any, value: jax.Array) -> jax.Array:
                    is_here = number == edges.through.index(name)
                    return jnp.where(is_here, value.at[:, head].set(new[name][:, head]), value)

                resid = passes.layer(direct.clean["resid_pre"][layer], layer, tap, edges.through)
                return of_resid(passes.behind(resid, layer + 1))

            return jax.vmap(one)(jnp.arange(len(edges.through)))

        def of_sender(layer: Any, head: Any) -> jax.Array:
            streams, _ = direct.streams(layer, head, direct.change(layer, head)[1])
            return passes.map_heads(
                lambda at, of: passes.if_later(at, layer, lambda: of_receiver(streams, at, of)), edges.receivers
            )

        patched_SRXB = passes.map_heads(of_sender, edges.senders)
        return {
            "patched": jnp.moveaxis(patched_SRXB, 2, 0), "clean": of_resid(direct.last),
            "corrupted": of_resid(direct.corrupted_last),
        }  # fmt: skip

    found: dict[str, jax.Array] = by_rows(some_rows, pairs)
    return found


def logit_path_metric(
    params: Params, pairs: PairArrays, config: ModelConfig, edges: Edges, metric: str
) -> dict[str, jax.Array]:
    """The same without a receiver: "patched" [sender, row]."""

    def some_rows(pairs: PairArrays) -> dict[str, jax.Array]:
        direct, of_resid = Direct(params, pairs, config, edges), metric_fn(params, pairs, config, metric)

        def of_sender(layer: Any, head: Any) -> jax.Array:
            return of_resid(direct.streams(layer, head, direct.change(layer, head)[1])[1])

        return {
            "patched": direct.passes.map_heads(of_sender, edges.senders), "clean": of_resid(direct.last),
            "corrupted": of_resid(direct.corrupted_last),
        }  # fmt: skip

    found: dict[str, jax.Array] = by_rows(some_rows, pairs)
    return found


_compiled, _compiled_to_logits = (jax.jit(fn, static_argnums=(2, 3, 4)) for fn in (path_metric, logit_path_metric))


def path_patching(
    params: AnyParams, pairs: TokenPairs, config: ModelConfig, senders: Sequence[tuple[int, int]] | None = None,
    receivers: Sequence[tuple[int, int]] | None = None, *, through: Sequence[str] = THROUGH,
    metric: str = "loss", source: str = "corrupted", mlps: str = "recomputed",
) -> xr.Dataset:  # fmt: skip
    """The metric with each path patched: `patched` [through, sender, receiver, row], `clean` and `corrupted` [row].

    Heads are (layer, head), default all; `sender_layer`, `sender_head` and so on are coordinates. NaN where a receiver
    is not in a later layer than the sender. `share`: what the path does, as a part of what the corrupted rows do. A
    pass for each path and row; some 4,096 tokens are computed at a time. Raises UserError for heads that are not there,
    for none, and where no receiver is in a later layer than any sender.
    """
    edges = check_edges(config, senders, receivers, through, source, mlps)
    found = _compiled(as_jax(params), pairs.arrays(config, metric), config, edges, metric)
    return _named(found, edges, metric, ("through", "sender", "receiver"), "path patched")


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
    found = path_metric(at.params, PairArrays(*arrays), at.config, all_edges(at.config), "loss")
    return {"effect": found["patched"] - found["clean"], "all": jnp.mean(found["corrupted"] - found["clean"])}


def by_pair(effect: np.ndarray, config: ModelConfig) -> np.ndarray:
    """[..., sender, receiver] of all heads as [..., layer_src, head_src, layer_dst, head_dst]."""
    return effect.reshape(*effect.shape[:-2], *(config.n_layers, config.n_heads) * 2)


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    found = {"path_all_effect": seen["all"]}
    for values, suffix in zip(mean_and_sem(seen["effect"]), ("", "_sem"), strict=True):
        pairs = by_pair(values, context.config.model)
        found |= {f"{name}_path_effect{suffix}": pairs[:, i] for i, name in enumerate(THROUGH)}
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
            f"{name}_path_effect": Variable(
                PAIR, "nats", f"loss of repeats where the {reads} of head_dst are told what head_src says on rows "
                "without repeats, less as they are", LATER,
            )
            for name, reads in READS.items()
        },
        **{
            f"{name}_path_effect_sem": Variable(PAIR, "nats", f"standard error of {name}_path_effect over rows", LATER)
            for name in READS
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
