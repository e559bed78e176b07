"""Many runs in one program: states with an axis `member`, spread over the devices; none waits for another.

On a CPU a device takes one member at a time: the program is then that of a run alone on one device, and so are its
bits, however many members and devices there are. (In a loop, or with several at a time, XLA fuses otherwise.) On an
accelerator a device takes all of its members together, or as many as its memory holds. Rows are drawn once, for all.

A round is what the devices take at a time, equally many on each; the last is filled up with copies of its last member.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icl_jax.config import Config
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.params import run_once
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.step import Axes, StepMetrics, TrainState, init_state, train_step

WHOLE, CUT = PartitionSpec(), PartitionSpec("member")
# Of a device's memory; the rest is for what waits to be fetched, the probes, and the allocator's gaps.
_SHARE_OF_MEMORY = 0.8


def are_mapped(platform: str) -> bool:
    """Whether a device takes several members at a time."""
    return platform != "cpu"


def member_mesh(devices: Iterable[jax.Device]) -> Mesh:
    """A member is on one device, an axis of its own: its sums over devices are there, as in a run alone."""
    return Mesh(np.array(list(devices))[:, None], ("member", "devices"))


def of_each(function: Callable[..., Any], is_mapped: bool) -> Callable[..., Any]:
    """`function` of each member that a device takes at a time; the first argument's arrays have their axis in front."""

    def alone(own: Any, *others: Any) -> Any:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], own), *others))

    def together(own: Any, *others: Any) -> Any:
        return jax.vmap(lambda one: function(one, *others))(own)

    return together if is_mapped else alone


class MemberStep(ParallelStep):
    """The compiled step of all members. `execution`: how it is computed; None resolves it.

    Of a state, `params` and `opt_state` are tuples, an entry for each round, as are the metrics of a step; saved, every
    array but `step` has the axis of all members in front.
    """

    def __init__(self, config: Config, devices: list[jax.Device], execution: Execution | None = None) -> None:
        config.train.rows_per_device(1)
        self.n_members = len(config.members)
        self.n_devices = len(devices)
        self._devices, self._config, self._is_pmap = devices, config, False
        self.platform = devices[0].platform
        self._is_mapped = are_mapped(self.platform)
        self._execution = execution or resolve(config.model, self.platform, config.train)
        self._mesh = member_mesh(devices)
        self._rows_sharding = NamedSharding(self._mesh, WHOLE)
        self._own_sharding = NamedSharding(self._mesh, CUT)
        self._gather = jax.jit(lambda x: x, out_shardings=self._rows_sharding)
        self.state_shape = jax.eval_shape(lambda: _stacked(init_state(config.member(0)), self.n_members))
        is_even = self.n_members % self.n_devices == 0  # else every device holds a saved state whole
        self.state_sharding = jax.tree.map(
            lambda x: self._own_sharding if x.ndim and is_even else self._rows_sharding, self.state_shape
        )
        n_each = -(-self.n_members // self.n_devices) if self._is_mapped else 1
        self._program, self._n_at_a_time = self._jitted(n_each), n_each * self.n_devices
        self._round = self._fitted(n_each) if self._is_mapped else self._program
        self.step = self._step

    def _jitted(self, n_each: int) -> jax.stages.Wrapped:
        """One round, of so many members on each device."""
        axes = Axes(("devices",), {})
        # The logits of all members count as one chunk.
        execution = replace(self._execution, loss_chunk=max(1, self._execution.loss_chunk // n_each))

        def one(own: tuple[Any, Any], step: jax.Array, rows: jax.Array) -> tuple[tuple[Any, Any], StepMetrics]:
            state = TrainState(step, *own)
            after, metrics = train_step(state, rows, config=self._config, axes=axes, execution=execution)
            return (after.params, after.opt_state), metrics

        def take(own: Any, step: jax.Array, rows: jax.Array) -> tuple[Any, StepMetrics, jax.Array]:
            return *of_each(one, self._is_mapped)(own, step, rows), step + 1

        mapped = jax.shard_map(
            take, mesh=self._mesh, in_specs=(CUT, WHOLE, WHOLE), out_specs=(CUT, CUT, WHOLE), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=0)

    def _fitted(self, n_each: int) -> Any:
        """The step compiled for as many members at a time as a device's memory holds, in equal rounds."""
        limit = memory_bytes(self._devices[0])
        resident = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.state_shape)) // self.n_devices
        while True:
            compiled = self.lower().compile()
            used = compiled.memory_analysis()
            room = _SHARE_OF_MEMORY * limit - resident
            needed = getattr(used, "temp_size_in_bytes", 0)
            if not limit or needed <= room or n_each == 1:
                return compiled
            n_rounds = -(-self.n_members // (self.n_devices * max(1, int(n_each * max(room, 0) / needed))))
            n_each = min(n_each - 1, -(-self.n_members // (self.n_devices * n_rounds)))
            self._program, self._n_at_a_time = self._jitted(n_each), n_each * self.n_devices

    def _step(self, state: TrainState, rows: jax.Array) -> tuple[TrainState, tuple[StepMetrics, ...]]:
        done: list[Any] = [
            self._round(own, state.step, rows) for own in zip(state.params, state.opt_state, strict=True)
        ]
        own, metrics, steps = zip(*done, strict=True)
        return self._in_rounds(steps[-1], *zip(*own, strict=True)), metrics

    @staticmethod
    def _in_rounds(step: Any, params: Any, opt_state: Any) -> TrainState:
        return TrainState(step, params, opt_state)

    def lower(self) -> jax.stages.Lowered:
        """One round of the step for shapes alone."""
        return self.traced().lower()

    def traced(self) -> jax.stages.Traced:
        """The same before it is lowered for a platform."""

        def part(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self._n_at_a_time, *x.shape[1:]), x.dtype, sharding=self._own_sharding)

        like = self.state_like
        rows = (self._config.train.batch_size, self._config.model.n_ctx + 1)
        own = jax.tree.map(part, (like.params, like.opt_state))
        rows_like = jax.ShapeDtypeStruct(rows, np.int32, sharding=self._rows_sharding)
        return self._program.trace(own, like.step, rows_like)

    def init_state(self) -> TrainState:
        """The states of step 0, each as of the run alone."""
        first = self._config.member(0)
        seeds = jnp.array(self._config.members.train_seeds, jnp.uint32)
        # One after the other: a random number of a batch of keys may be made in another way.
        states = run_once(lambda: jax.lax.map(lambda seed: init_state(first, seed), seeds))
        return self.from_saved(states._replace(step=states.step[0]))

    def from_saved(self, state: TrainState) -> TrainState:
        """The rounds of a state that has all members in one array."""
        n, starts = self._n_at_a_time, range(0, self.n_members, self._n_at_a_time)
        indices = [np.minimum(np.arange(start, start + n), self.n_members - 1) for start in starts]

        def rounds(tree: Any) -> Any:
            host = jax.tree.map(np.asarray, tree)
            return tuple(
                jax.device_put(jax.tree.map(lambda x, index=index: x[index], host), self._own_sharding)
                for index in indices
            )

        step = jax.device_put(np.asarray(state.step), self._rows_sharding)
        return self._in_rounds(step, rounds(state.params), rounds(state.opt_state))

    def over_all_devices(self, state: TrainState) -> TrainState:
        """A state with all members in one array, over the devices."""
        return self.put_state(TrainState(state.step, self.to_host(state.params), self.to_host(state.opt_state)))

    def to_host(self, tree: Any) -> Any:
        """The rounds of a tree as NumPy arrays of all members, that outlive the donation of the originals."""
        return joined(tree, self.n_members)

    def finite_members(self, trees: list[Any]) -> np.ndarray:
        """[member]: whether all values of each are finite. On a CPU nothing is compiled for it."""
        look = _are_finite if self.platform == "cpu" else _are_finite_on_device
        each = [look([tree[i] for tree in trees]) for i in range(len(trees[0]))]
        return np.concatenate(jax.device_get(each))[: self.n_members]


def _are_finite(tree: Any, xp: Any = np) -> Any:
    parts = [xp.isfinite(xp.asarray(x)).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(tree)]
    return xp.stack(parts).all(axis=0)


_are_finite_on_device = jax.jit(partial(_are_finite, xp=jnp))


def memory_bytes(device: jax.Device) -> int:
    """Memory that JAX may use of a device; 0 where it is not told, as of a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return int((stats or {}).get("bytes_limit", 0))


def joined(rounds: Any, n_members: int) -> Any:
    """The trees of all rounds as one of NumPy arrays, all members along the axis in front. Always a copy."""
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts])[:n_members], *rounds)


def _stacked(state: TrainState, n: int) -> TrainState:
    return jax.tree.map(lambda x: jnp.stack([x] * n), state)._replace(step=state.step)
