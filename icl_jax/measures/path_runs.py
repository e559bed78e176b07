"""The runs of path patching, compiled: `icl_jax.measures.path_patching` says what they are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from icl_jax.config import ModelConfig
from icl_jax.measures.passes import Passes, by_rows
from icl_jax.measures.token_pairs import PairArrays, metric_fn
from icl_jax.model.params import Params

THROUGH = ("q", "k", "v")
Heads = tuple[tuple[int, int], ...]


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

    def streams_of_set(self, senders_NH: jax.Array) -> jax.Array:
        """The stream entering each layer, [N, B, T, D], where the outputs of all these heads are the new ones."""

        def tap(name: str, index: Any, _value: jax.Array) -> jax.Array:
            kept = self.clean[name][index]
            is_sender = senders_NH[index][None, :, None, None]
            return jnp.where(is_sender, self._new_z[index], kept) if name == "z" else kept

        def step(resid: jax.Array, index: Any) -> tuple[jax.Array, jax.Array]:
            return self.passes.layer(resid, index, tap, self._frozen), resid

        return self.passes.scan(step, self.clean["resid_pre"][0])[1]

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


def set_path_metric(
    params: Params, pairs: PairArrays, config: ModelConfig, edges: Edges, metric: str, senders: jax.Array,
    receivers: jax.Array,
) -> dict[str, jax.Array]:  # fmt: skip
    """ "patched" [through, set, row]: of all heads of a set of senders to all of the set of receivers beside it.

    senders, receivers: bool [set, layer, head]; of `edges` they stand in for the heads.
    """

    def some_rows(pairs: PairArrays) -> dict[str, jax.Array]:
        direct, of_resid = Direct(params, pairs, config, edges), metric_fn(params, pairs, config, metric)
        passes = direct.passes

        def of_set(members: tuple[jax.Array, jax.Array]) -> jax.Array:
            senders_NH, receivers_NH = members
            streams = direct.streams_of_set(senders_NH)

            def one(number: jax.Array) -> jax.Array:
                def step(resid: jax.Array, index: Any) -> tuple[jax.Array, None]:
                    new = passes.seen_at(streams[index], index, edges.through)

                    def tap(name: str, _index: Any, value: jax.Array) -> jax.Array:
                        is_here = receivers_NH[index] & (number == edges.through.index(name))
                        return jnp.where(is_here[None, :, None, None], new[name], value)

                    return passes.layer(resid, index, tap, edges.through), None

                return of_resid(passes.scan(step, direct.clean["resid_pre"][0])[0])

            return jax.vmap(one)(jnp.arange(len(edges.through)))

        return {
            "patched": jnp.moveaxis(jax.lax.map(of_set, (senders, receivers)), 1, 0),
            "clean": of_resid(direct.last), "corrupted": of_resid(direct.corrupted_last),
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
