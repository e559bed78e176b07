"""Many runs in one program: states with an axis `member`, spread over the devices; none waits for another.

On a CPU a device takes one member at a time: the program is then that of a run alone on one device, and so are its
bits, however many members and devices there are. (In a loop, or with several at a time, XLA fuses otherwise.) On an
accelerator a device takes all of its members together. Rows are drawn once, for all.

A round is what the devices take at a time: member k is at place k % n of round k // n, for n members a round.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icl_jax.config import Config, UserError
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.params import run_once
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.step import Axes, StepMetrics, TrainState, init_state, train_step

_WHOLE, _CUT = PartitionSpec(), PartitionSpec("member")


def check_devices(config: Config, n_devices: int) -> None:
    """Raise UserError where the members do not divide among the devices."""
    n = len(config.members)
    if n % n_devices:
        fitting = max(d for d in range(1, n_devices + 1) if n % d == 0)
        allowed = f"{n} members must be divisible by {n_devices} devices; --devices {fitting} would do"
        raise UserError(f"members.seeds = {config.members.seeds!r}: {allowed}")


def member_mesh(devices: list[jax.Device]) -> Mesh:
    """A member is on one device, an axis of its own: its sums over devices are there, as in a run alone."""
    return Mesh(np.array(devices)[:, None], ("member", "devices"))


def of_each(function: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """`function` of each member that a device takes at a time; the first argument's arrays have their axis in front."""

    def alone(own: Any, *others: Any) -> Any:
        return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], own), *others))

    def together(own: Any, *others: Any) -> Any:
        return jax.vmap(lambda one: function(one, *others))(own)

    return alone if platform == "cpu" else together


class MemberStep(ParallelStep):
    """The compiled step of all members. `execution`: how it is computed; None resolves it.

    Of a state, `params` and `opt_state` are tuples, an entry for each round, as are the metrics of a step; saved, every
    array but `step` has the axis of all members in front. Raises UserError if the members do not divide among the
    devices.
    """

    def __init__(self, config: Config, devices: list[jax.Device], execution: Execution | None = None) -> None:
        check_devices(config, len(devices))
        config.train.rows_per_device(1)
        self.n_devices = len(devices)
        self._devices, self._config, self._is_pmap = devices, config, False
        self.platform = devices[0].platform
        n_members = len(config.members)
        self._n_at_a_time = self.n_devices if self.platform == "cpu" else n_members
        self._mesh = member_mesh(devices)
        self._rows_sharding = NamedSharding(self._mesh, _WHOLE)
        self._own_sharding = NamedSharding(self._mesh, _CUT)
        self._gather = jax.jit(lambda x: x, out_shardings=self._rows_sharding)
        self.state_shape = jax.eval_shape(lambda: _stacked(init_state(config.member(0)), n_members))
        self.state_sharding = jax.tree.map(
            lambda x: self._own_sharding if x.ndim else self._rows_sharding, self.state_shape
        )
        execution = execution or resolve(config.model, self.platform, config.train)
        axes = Axes(("devices",), {})

        def one(own: tuple[Any, Any], step: jax.Array, rows: jax.Array) -> tuple[tuple[Any, Any], StepMetrics]:
            after, metrics = train_step(TrainState(step, *own), rows, config=config, axes=axes, execution=execution)
            return (after.params, after.opt_state), metrics

        def take(own: Any, step: jax.Array, rows: jax.Array) -> tuple[Any, StepMetrics, jax.Array]:
            return *of_each(one, self.platform)(own, step, rows), step + 1

        mapped = jax.shard_map(
            take, mesh=self._mesh, in_specs=(_CUT, _WHOLE, _WHOLE), out_specs=(_CUT, _CUT, _WHOLE), check_vma=False
        )
        self._round = jax.jit(mapped, donate_argnums=0)
        self.step = self._step

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

        def part(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self._n_at_a_time, *x.shape[1:]), x.dtype, sharding=self._own_sharding)

        like = self.state_like
        rows = (self._config.train.batch_size, self._config.model.n_ctx + 1)
        return self._round.lower(
            jax.tree.map(part, (like.params, like.opt_state)), like.step,
            jax.ShapeDtypeStruct(rows, np.int32, sharding=self._rows_sharding),
        )  # fmt: skip

    def init_state(self) -> TrainState:
        """The states of step 0, each as of the run alone."""
        first = self._config.member(0)
        seeds = jnp.array(self._config.members.train_seeds, jnp.uint32)
        # One after the other: a random number of a batch of keys may be made in another way.
        states = run_once(lambda: jax.lax.map(lambda seed: init_state(first, seed), seeds))
        return self.from_saved(states._replace(step=states.step[0]))

    def from_saved(self, state: TrainState) -> TrainState:
        """The rounds of a state that has all members in one array."""
        n = self._n_at_a_time

        def rounds(tree: Any) -> Any:
            host = jax.tree.map(np.asarray, tree)
            return tuple(
                jax.device_put(jax.tree.map(lambda x, a=a: x[a : a + n], host), self._own_sharding)
                for a in range(0, len(self._config.members), n)
            )

        step = jax.device_put(np.asarray(state.step), self._rows_sharding)
        return self._in_rounds(step, rounds(state.params), rounds(state.opt_state))

    def over_all_devices(self, state: TrainState) -> TrainState:
        """A state with all members in one array, over the devices."""
        return self.put_state(TrainState(state.step, joined(state.params), joined(state.opt_state)))

    def to_host(self, tree: Any) -> Any:
        """The rounds of a tree as NumPy arrays of all members, that outlive the donation of the originals."""
        return joined(tree)

    def finite_members(self, trees: list[Any]) -> np.ndarray:
        """[member]: whether all values of each are finite."""
        finite = [
            np.isfinite(x).reshape(len(x), -1).all(axis=1) for tree in trees for x in jax.tree.leaves(joined(tree))
        ]
        return np.logical_and.reduce(finite)


def joined(rounds: Any) -> Any:
    """The trees of all rounds as one of NumPy arrays, all members along the axis in front. Always a copy."""
    return jax.tree.map(lambda *parts: np.concatenate([np.asarray(part) for part in parts]), *rounds)


def _stacked(state: TrainState, n: int) -> TrainState:
    return jax.tree.map(lambda x: jnp.stack([x] * n), state)._replace(step=state.step)
