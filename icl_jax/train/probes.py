"""The live measures, taken from parameters during training on their own schedule."""

from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icl_jax.config import Config
from icl_jax.data import Corpus, each_corpus
from icl_jax.maths.head_scores import repeated_tokens
from icl_jax.maths.icl_score import icl_positions, icl_score, icl_windowed
from icl_jax.measures.icl import standard_error
from icl_jax.measures.measurement import MAX_PATTERN_CTX, Measurement
from icl_jax.measures.snapshot import Snapshot
from icl_jax.measures.table import TABLE
from icl_jax.model.execution import CPU_TOKENS_AT_A_TIME, resolve
from icl_jax.model.loss import losses
from icl_jax.model.params import Params
from icl_jax.rundir.record import HEAD_SCORES, ProbeResult
from icl_jax.train.members import CUT, WHOLE, Rounds, are_mapped, joined
from icl_jax.train.parallel import put
from icl_jax.train.processes import from_all

# Bounds the memory of the loss on the held-out set.
_TOKENS_AT_A_TIME = 65536
# The same of members that are probed together, over them all.
_MAPPED_TOKENS = 2**20

_LIVE = tuple(m for m in TABLE if isinstance(m, Measurement) and m.live)

ProbeFn = Callable[[int, Any], ProbeResult]


def divisor_up_to(n: int, at_most: int) -> int:
    """The greatest divisor of n that is not above `at_most`."""
    return max(d for d in range(1, min(n, at_most) + 1) if n % d == 0)


def _held_out_loss(params: Params, rows: jax.Array, *, config: Config, platform: str) -> tuple[jax.Array, jax.Array]:
    """Loss summed over rows at each position, nats, with a leading axis of length 1 for the device.

    And the ICL scores of each row, [row, 2]: over windows, at single positions.
    """

    # The forms of the training step, of which memory on a GPU and TPU is sure; nothing is differentiated.
    execution = resolve(config.model, platform, config.train)

    at = icl_positions(config.model.n_ctx)

    def batch_loss(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss_BT = losses(params, rows, config.model, execution=execution)
        early, late = (loss_BT[:, a - 1 : b].mean(axis=1) for a, b in (at.early_window, at.late_window))
        single = loss_BT[:, at.late - 1] - loss_BT[:, at.early - 1]
        return jnp.sum(loss_BT, axis=0), jnp.stack([late - early, single], axis=1)

    n_rows = rows.shape[0]
    n_tokens = CPU_TOKENS_AT_A_TIME if platform == "cpu" else _TOKENS_AT_A_TIME
    at_a_time = divisor_up_to(n_rows, max(1, n_tokens // config.model.n_ctx))
    sums, icl_of_rows = jax.lax.map(batch_loss, rows.reshape(-1, at_a_time, rows.shape[1]))
    return jnp.sum(sums, axis=0, keepdims=True), icl_of_rows.reshape(n_rows, 2)


def _errors(icl_of_rows: np.ndarray) -> dict[str, Any]:
    """Standard errors over rows of the two scores, [row, 2] or [member, row, 2]."""
    sem = standard_error(np.moveaxis(np.asarray(icl_of_rows, np.float64), -2, -1).reshape(-1, icl_of_rows.shape[-2]))
    windowed, single = sem.reshape(-1, 2).T
    if icl_of_rows.ndim == 2:
        return {"icl_sem": float(windowed[0]), "icl_score_sem": float(single[0])}
    return {"icl_sem": windowed, "icl_score_sem": single}


def _head_scores(params: Params, rows: dict[str, jax.Array], config: Config) -> dict[str, jax.Array]:
    """The measurements marked live, [layer, head] each: what analysis takes of a snapshot, on the probes' rows."""
    if config.model.n_layers == 0:
        return {name: jnp.zeros((0, config.model.n_heads)) for live in _LIVE for name in live.live}
    # Patterns alone: whatever else a measurement reads beside what is live falls away.
    at = Snapshot(params, rows, config.model, ("pattern",))
    return {name: scores[name] for live in _LIVE if live.look for scores in (live.look(at),) for name in live.live}


def _rows(config: Config, corpus: Corpus, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Held-out rows, and those that heads are scored on."""
    held_out = corpus.held_out(config.probes.held_out_rows)
    natural = held_out[: config.probes.n_sequences, : min(config.model.n_ctx, MAX_PATTERN_CTX)]
    repeated = repeated_tokens(
        corpus.probe_tokens(),
        corpus.bos_id,
        config.model.n_ctx,
        n_sequences=config.probes.n_sequences,
        repeat_len=config.probes.repeat_len,
        n_repeats=config.probes.n_repeats,
        seed=seed,
    )
    return held_out, {"natural": natural, "repeated": repeated, "repeated_once": repeated}


def make_probe_fn(config: Config, corpus: Corpus, devices: list[jax.Device]) -> ProbeFn:
    """A function of (step, parameters on one device); compiled at its first call. With members, of all of theirs.

    The held-out rows are shared out over `devices`, those of this process, as far as they divide evenly.
    """
    each = [_rows(config, one, seed) for one, seed in zip(each_corpus(corpus), config.row_seeds, strict=True)]
    n_held_out = len(each[0][0])
    head_scores = jax.jit(partial(_head_scores, config=config))

    def begin_on(devices: list[jax.Device]) -> Callable[[Params, int], tuple[Any, Any]]:
        """Dispatch the probes of parameters that are on the first device, on the i-th rows, without waiting."""
        mesh = Mesh(np.array(devices[: divisor_up_to(n_held_out, len(devices))]), ("devices",))
        whole, shared = PartitionSpec(), PartitionSpec("devices")
        loss_fn = partial(_held_out_loss, config=config, platform=devices[0].platform)
        losses = jax.jit(jax.shard_map(loss_fn, mesh=mesh, in_specs=(whole, shared), out_specs=shared, check_vma=False))

        @cache
        def rows_of(i: int) -> tuple[Any, Any]:
            held_out, row_sets = each[i]
            return jax.device_put(held_out, NamedSharding(mesh, shared)), jax.device_put(row_sets, devices[0])

        def begin(params: Params, i: int) -> tuple[Any, Any]:
            held_out, row_sets = rows_of(i)
            loss = losses(jax.device_put(params, NamedSharding(mesh, whole)), held_out)
            return loss, head_scores(params, row_sets)

        return begin

    def result(step: int, begun: tuple[Any, Any]) -> ProbeResult:
        (sums, icl_of_rows), scores = jax.device_get(begun)
        loss_T = np.asarray(np.sum(sums, axis=0) / np.float32(n_held_out))
        return ProbeResult(
            step=step,
            icl_score=icl_score(loss_T),
            icl_windowed=icl_windowed(loss_T),
            held_out_loss=loss_T,
            **_errors(icl_of_rows),
            **{name: np.asarray(score_NH) for name, score_NH in scores.items()},
        )

    if not config.members:
        begin = begin_on(devices)
        return lambda step, params: result(step, begin(params, 0))
    if are_mapped(devices[0].platform):
        return _mapped_probe_fn(config, devices[0].platform, each)
    begins = [begin_on([device]) for device in devices]
    n_processes = jax.process_count()

    def probe_members(step: int, rounds: Rounds) -> ProbeResult:
        """Each member by the program of a run alone, on its own device; a process takes every so many."""
        begun, params = [], joined(rounds)
        n_members = len(config.members)
        for i in range(-(-n_members // n_processes)):
            place = i % len(devices)
            k = min(i * n_processes + jax.process_index(), n_members - 1)
            own = {name: array[k] for name, array in params.items()}
            begun.append(begins[place](jax.device_put(own, devices[place]), config.rows_of_members[k]))
        results = [result(step, one) for one in begun]
        together: dict[str, Any] = {}
        for name in (f.name for f in fields(ProbeResult)):
            per_process = from_all(np.stack([getattr(one, name) for one in results]))
            together[name] = np.concatenate(np.swapaxes(per_process, 0, 1))[:n_members]
        return ProbeResult(**together | {"step": step})

    return probe_members


def _mapped_probe_fn(config: Config, platform: str, each: list[Any]) -> ProbeFn:
    """The probes of all members in one program for each round, a bounded number of members at a time."""
    has_own_rows, which = len(each) > 1, np.array(config.rows_of_members)
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *each) if has_own_rows else each[0]
    at_a_time = max(1, _MAPPED_TOKENS // max(rows.size for rows in jax.tree.leaves(each[0])))

    def one(params: Params, held_out: jax.Array, row_sets: dict[str, jax.Array]) -> tuple[Any, ...]:
        loss_1T, icl_of_rows = _held_out_loss(params, held_out, config=config, platform=platform)
        # JAX puts no parts together that hold nothing.
        return loss_1T[0], icl_of_rows, _head_scores(params, row_sets, config) if config.model.n_layers else {}

    def take(params: Params, rows: Any) -> tuple[Any, ...]:
        at_once = min(len(next(iter(params.values()))), at_a_time)
        if has_own_rows:
            return jax.lax.map(lambda own: one(own[0], *own[1]), (params, rows), batch_size=at_once)
        return jax.lax.map(lambda own: one(own, *rows), params, batch_size=at_once)

    @cache
    def over(mesh: Mesh) -> Callable[[Params, Any], tuple[Any, ...]]:
        specs = (CUT, CUT if has_own_rows else WHOLE)
        return jax.jit(jax.shard_map(take, mesh=mesh, in_specs=specs, out_specs=CUT, check_vma=False))

    on: list[Any] = []

    def probe_members(step: int, rounds: Rounds) -> ProbeResult:
        meshes = [params["W_E"].sharding.mesh for params in rounds.parts]
        if not on:  # rounds never change
            member_at = np.zeros(sum(len(params["W_E"]) for params in rounds.parts), int)  # a copy may have any rows
            member_at[rounds.take] = np.arange(len(rounds.take))
            of_rounds = np.split(which[member_at], np.cumsum([len(params["W_E"]) for params in rounds.parts])[:-1])
            for mesh, of_round in zip(meshes, of_rounds, strict=True):
                own = jax.tree.map(lambda rows, at=of_round: rows[at], stacked) if has_own_rows else stacked
                on.append(put(own, mesh, CUT if has_own_rows else WHOLE))
        begun = tuple(over(mesh)(params, rows) for mesh, params, rows in zip(meshes, rounds.parts, on, strict=True))
        sums, icl_of_rows, scores = joined(Rounds(begun, rounds.take))
        if not config.model.n_layers:
            scores = dict.fromkeys(HEAD_SCORES, np.zeros((len(sums), 0, config.model.n_heads), np.float32))
        loss_MT = np.asarray(sums / np.float32(len(each[0][0])))
        return ProbeResult(
            step=step,
            icl_score=icl_score(loss_MT),
            icl_windowed=icl_windowed(loss_MT),
            held_out_loss=loss_MT,
            **_errors(np.asarray(icl_of_rows)),
            **scores,
        )

    return probe_members
