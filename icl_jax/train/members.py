"""Many runs in one program: states with an axis `member`, spread over the devices; none waits for another.

On a CPU a device takes one member at a time: the program is then that of a run alone on one device, and so are its
bits, however many members and devices there are. (In a loop, or with several at a time, XLA fuses otherwise; a number
that is an argument of the program is not folded into others.) So there is a program for each set of numbers that
members differ in. On an accelerator a device takes all of its members together, or as many as its memory holds, and
what they differ in is an argument. Rows are drawn once, for all, unless members differ in `data.seed`.

A round is what the devices take at a time, equally many on each; it is filled up with copies of its last member.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icl_jax.config import ROWS, SEEDS, Config
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.params import run_once
from icl_jax.train.interventions import NOTHING, Interventions, Moment
from icl_jax.train.parallel import ParallelStep, put
from icl_jax.train.processes import from_all
from icl_jax.train.step import Axes, StepMetrics, TrainState, init_state, train_step

WHOLE, CUT = PartitionSpec(), PartitionSpec("member")
# Of a device's memory; the rest is for what waits to be fetched, the probes, and the allocator's gaps.
_SHARE_OF_MEMORY = 0.8
# What changes the state of step 0 alone, or the rows: the program is the same.
_OUTSIDE = (SEEDS, "model.init_std", ROWS)
_INTERVENE = "intervene."


class Rounds(NamedTuple):
    """Trees of all members, those of a round in one tree, the member axis in front."""

    parts: tuple[Any, ...]
    take: np.ndarray
    """Of each member its place along the axes of all parts, one after the other."""


class _Round(NamedTuple):
    members: np.ndarray
    """Their numbers; the last may be there again."""
    mesh: Mesh
    program: Callable[..., Any]
    own: Mapping[str, jax.Array]
    """What these members differ in, [member], where it is an argument of the program."""


def are_mapped(platform: str) -> bool:
    """Whether a device takes several members at a time."""
    return platform != "cpu"


def member_mesh(devices: Iterable[jax.Device]) -> Mesh:
    """A member is on one device, an axis of its own: its sums over devices are there, as in a run alone."""
    return Mesh(np.array(list(devices))[:, None], ("member", "devices"))


def joined(rounds: Rounds) -> Any:
    """The trees of all rounds as one of NumPy arrays, all members along the axis in front. Always a copy.

    Every process must call it, and has all members then.
    """
    parts = jax.device_get([_on_every_process(part) for part in rounds.parts])
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[rounds.take], *parts)


def _on_every_process(tree: Any) -> Any:
    leaves = jax.tree.leaves(tree)
    if all(getattr(x, "is_fully_addressable", True) for x in leaves):
        return tree
    return _gather(leaves[0].sharding.mesh)(tree)


@lru_cache
def _gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, WHOLE))


class MemberStep(ParallelStep):
    """The compiled step of all members. `execution`: how it is computed; None resolves it.

    Of a state, `step` is a tuple of one for each round, `params` and `opt_state` are `Rounds`, as are the metrics of a
    step; saved, every array but `step` has the axis of all members in front.
    """

    def __init__(self, config: Config, devices: list[jax.Device], execution: Execution | None = None) -> None:
        config.train.rows_per_device(1)
        n_members = len(config.members)
        self.n_devices = len(devices)
        self._devices, self._config, self._is_pmap = devices, config, False
        self.platform = devices[0].platform
        self._execution = execution or resolve(config.model, self.platform, config.train)
        self._mesh = member_mesh(devices)
        self._rows_sharding = NamedSharding(self._mesh, WHOLE)
        # Of each member which rows are its own; None: all have the same.
        self._own_rows = np.array(config.rows_of_members) if len(config.row_seeds) > 1 else None
        self.state_shape = jax.eval_shape(lambda: _stacked(init_state(config.member(0)), n_members))
        is_even = n_members % self.n_devices == 0  # else every device holds a saved state whole
        own = NamedSharding(self._mesh, CUT) if is_even else self._rows_sharding
        self.state_sharding = jax.tree.map(lambda x: own if x.ndim else self._rows_sharding, self.state_shape)
        self._is_mapped = are_mapped(self.platform)
        self._rounds = self._together() if self._is_mapped else self._one_by_one()
        order = np.concatenate([one.members for one in self._rounds])
        # Of copies any would do.
        self._take = np.array([int(np.argmax(order == k)) for k in range(n_members)])
        self.step = self._step
        self._programs: dict[Any, Any] = {}
        self._put: Any = (NOTHING, [])

    def _one_by_one(self) -> list[_Round]:
        """A member on each device at a time, by the program that is compiled for its own numbers."""
        alike: dict[Any, list[int]] = {}
        for k, setting in enumerate(self._config.members.settings):
            # What interventions differ in is an argument of the program.
            own = tuple(pair for pair in setting if pair[0] not in _OUTSIDE and not pair[0].startswith(_INTERVENE))
            alike.setdefault(own, []).append(k)
        rounds, place = [], 0
        for members in alike.values():
            # Too few for all devices: the next of the others have theirs beside them. A process has a part in all.
            n = self.n_devices if jax.process_count() > 1 else min(len(members), self.n_devices)
            devices = [self._devices[(place + i) % self.n_devices] for i in range(n)]
            mesh = self._mesh if n == self.n_devices else member_mesh(devices)
            place += n % self.n_devices
            program = self._program(self._config.member(members[0]), mesh, 1)
            rounds += [_Round(part, mesh, program, {}) for part in _parts(members, n)]
        return rounds

    def _together(self) -> list[_Round]:
        """As many members at a time as a device's memory holds, in equal rounds."""
        n_members = len(self._config.members)
        n_each = -(-n_members // self.n_devices)
        # The least of any process, in KiB: of several, all must come to the same.
        limit = int(from_all(np.array(memory_bytes(self.local_devices[0]) >> 10)).min()) << 10
        room = _SHARE_OF_MEMORY * limit - _n_bytes(self.state_shape) / self.n_devices
        varied = {
            name: np.array(values, np.float32 if isinstance(values[0], float) else np.int32)
            for name, values in self._config.member_fields.items()
            if name not in _OUTSIDE and not name.startswith(_INTERVENE)
        }
        while True:
            jitted = self._program(self._config.member(0), self._mesh, n_each)
            parts = _parts(range(n_members), n_each * self.n_devices)
            owns = [put({name: x[part] for name, x in varied.items()}, self._mesh, CUT) for part in parts]
            rounds = [_Round(part, self._mesh, jitted, own) for part, own in zip(parts, owns, strict=True)]
            program = self._traced(rounds[0]).lower().compile()
            needed = getattr(program.memory_analysis(), "temp_size_in_bytes", 0)
            if not limit or needed <= room or n_each == 1:
                return [one._replace(program=program) for one in rounds]
            n_rounds = -(-n_members // (self.n_devices * max(1, int(n_each * max(room, 0) / needed))))
            n_each = min(n_each - 1, -(-n_members // (self.n_devices * n_rounds)))

    def _program(
        self, config: Config, mesh: Mesh, n_each: int, on: tuple[int, ...] = (),
        interventions: Interventions | None = None,
    ) -> Any:  # fmt: skip
        """One round, of so many members on each device; with interventions it takes what other runs have as well."""
        axes, has_own_rows = Axes(("devices",), {}), self._own_rows is not None
        # The logits of all members count as one chunk.
        execution = replace(self._execution, loss_chunk=max(1, self._execution.loss_chunk // n_each))

        def one(
            state: Any, own: Mapping[str, Any], step: jax.Array, rows: jax.Array, *shared: Any
        ) -> tuple[Any, StepMetrics]:
            before = TrainState(step, *state)
            more: dict[str, Any] = {}
            if interventions is not None:
                given, own = own[_INTERVENE], {name: x for name, x in own.items() if name != _INTERVENE}
                more["intervened"] = interventions.intervened(on, given, shared[0], step, axes.names)
            after, metrics = train_step(before, rows, config=config, axes=axes, execution=execution, own=own, **more)
            return (after.params, after.opt_state), metrics

        def alone(state: Any, own: Any, step: jax.Array, rows: jax.Array, *shared: Any) -> Any:
            first = jax.tree.map(lambda x: x[0], state)
            own = own if interventions is None else jax.tree.map(lambda x: x[0], own)
            return jax.tree.map(lambda x: x[None], one(first, own, step, rows[0] if has_own_rows else rows, *shared))

        def take(state: Any, own: Any, step: jax.Array, rows: jax.Array, *shared: Any) -> Any:
            in_axes = (0, 0, None, 0 if has_own_rows else None, *(None for _ in shared))
            each = jax.vmap(one, in_axes=in_axes) if self._is_mapped else alone
            return *each(state, own, step, rows, *shared), step + 1

        specs = (CUT, CUT, WHOLE, CUT if has_own_rows else WHOLE, *(() if interventions is None else (WHOLE,)))
        mapped = jax.shard_map(take, mesh=mesh, in_specs=specs, out_specs=(CUT, CUT, WHOLE), check_vma=False)
        return jax.jit(mapped, donate_argnums=0)

    def under(self, moment: Moment, interventions: Interventions | None = None) -> Callable[[Any, Any], Any]:
        """The step with what is on at a moment in any member; in the others it is there, and changes nothing."""
        if not moment.on or interventions is None:
            return self.step
        if self._put[0] is not moment:
            self._put = moment, [self._round_under(one, moment, interventions) for one in self._rounds]
        rounds = self._put[1]
        return lambda state, rows: self._step(state, rows, rounds)

    def _round_under(self, one: _Round, moment: Moment, interventions: Interventions) -> _Round:
        key = (id(one.program), moment.on)
        if key not in self._programs:
            config, n_each = self._config.member(int(one.members[0])), len(one.members) // one.mesh.devices.size
            self._programs[key] = self._program(config, one.mesh, n_each, moment.on, interventions)
        program, shared = self._programs[key], put(interventions.shared, one.mesh, WHOLE)
        own = {**one.own, _INTERVENE: put(jax.tree.map(lambda x: x[one.members], moment.given), one.mesh, CUT)}
        return one._replace(program=lambda *args: program(*args, shared), own=own)

    def _step(
        self, state: TrainState, rows: list[jax.Array], rounds: list[_Round] | None = None
    ) -> tuple[TrainState, Rounds]:
        params_of: Any = state.params  # `Rounds`, as is the other
        before = zip(rounds or self._rounds, params_of.parts, state.opt_state.parts, state.step, rows, strict=True)
        done: list[Any] = [
            one.program((params, opt_state), one.own, step, its_rows)
            for one, params, opt_state, step, its_rows in before
        ]
        after, metrics, steps = zip(*done, strict=True)
        return self._in_rounds(steps, *zip(*after, strict=True)), Rounds(metrics, self._take)

    def _in_rounds(self, steps: Any, params: Any, opt_state: Any) -> TrainState:
        rounds: Any = Rounds(params, self._take), Rounds(opt_state, self._take)
        return TrainState(steps, *rounds)

    def put_rows(self, rows: np.ndarray) -> Any:
        """The rows of a step for each round: the same for all members, or [rows of `Config.row_seeds`, ...]."""
        if self._own_rows is not None:
            return [put(rows[self._own_rows[one.members]], one.mesh, CUT) for one in self._rounds]
        on = {mesh: put(rows, mesh, WHOLE) for mesh in {one.mesh for one in self._rounds}}
        return [on[one.mesh] for one in self._rounds]

    def lower(self) -> jax.stages.Lowered:
        """One round of the step for shapes alone."""
        return self.traced().lower()

    def traced(self) -> jax.stages.Traced:
        """The same before it is lowered for a platform."""
        first = self._rounds[0]
        n_each = len(first.members) // first.mesh.size
        jitted = self._program(self._config.member(int(first.members[0])), first.mesh, n_each)
        return self._traced(first._replace(program=jitted))

    def _traced(self, one: _Round) -> jax.stages.Traced:
        n, shape, program = len(one.members), self.state_shape, one.program
        cut, whole = NamedSharding(one.mesh, CUT), NamedSharding(one.mesh, WHOLE)
        state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype, sharding=cut), (shape.params, shape.opt_state)
        )
        each = (self._config.train.batch_size, self._config.model.n_ctx + 1)
        step = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
        rows = jax.ShapeDtypeStruct(each, np.int32, sharding=whole)
        if self._own_rows is not None:
            rows = jax.ShapeDtypeStruct((n, *each), np.int32, sharding=cut)
        traced: jax.stages.Traced = program.trace(state, one.own, step, rows)  # type: ignore[attr-defined]
        return traced

    def init_state(self) -> TrainState:
        """The states of step 0, each as of the run alone."""
        alike: dict[Any, list[int]] = {}
        for k, setting in enumerate(self._config.members.settings):
            alike.setdefault(dict(setting).get("model.init_std"), []).append(k)
        seeds = self._config.member_fields[SEEDS]
        parts = [
            _first_states(self._config.member(members[0]), [int(seeds[k]) for k in members])
            for members in alike.values()
        ]
        order = np.concatenate(list(alike.values()))
        states = jax.tree.map(lambda *arrays: np.concatenate(arrays)[np.argsort(order)], *jax.device_get(parts))
        return self.from_saved(states._replace(step=states.step[0]))

    def from_saved(self, state: TrainState) -> TrainState:
        """The rounds of a state that has all members in one array."""
        whole = jax.device_get(_on_every_process(state))

        def rounds(tree: Any) -> Any:
            return tuple(
                put(jax.tree.map(lambda x, one=one: x[one.members], tree), one.mesh, CUT) for one in self._rounds
            )

        steps = tuple(put(np.asarray(whole.step), one.mesh, WHOLE) for one in self._rounds)
        return self._in_rounds(steps, rounds(whole.params), rounds(whole.opt_state))

    def over_all_devices(self, state: TrainState) -> TrainState:
        """A state with all members in one array, over the devices."""
        step = np.asarray(state.step[0].addressable_data(0))
        return self.put_state(TrainState(step, joined(state.params), joined(state.opt_state)))  # type: ignore

    def to_host(self, tree: Any) -> Any:
        """The rounds of a tree as NumPy arrays of all members, that outlive the donation of the originals."""
        return joined(tree)

    def to_first_host(self, tree: Any) -> Any:
        """The same: all processes have it."""
        return joined(tree)

    def finite_members(self, trees: list[Any]) -> np.ndarray:
        """[member]: whether all values of each are finite. On a CPU nothing is compiled for it."""
        look = _are_finite if self.platform == "cpu" and jax.process_count() == 1 else _are_finite_on_device
        parts = tuple(look([tree.parts[i] for tree in trees]) for i in range(len(self._rounds)))
        finite: np.ndarray = joined(Rounds(parts, self._take))
        return finite


def _first_states(config: Config, seeds: list[int]) -> TrainState:
    keys = jnp.array(seeds, jnp.uint32)
    # One after the other: a random number of a batch of keys may be made in another way.
    return run_once(lambda: jax.lax.map(lambda seed: init_state(config, seed), keys))


def _parts(members: Iterable[int], n: int) -> list[np.ndarray]:
    """Members, n at a time; the last are filled up."""
    whole = np.array(list(members))
    starts = range(0, len(whole), n)
    return [whole[np.minimum(np.arange(start, start + n), len(whole) - 1)] for start in starts]


def _are_finite(tree: Any, xp: Any = np) -> Any:
    parts = [xp.isfinite(xp.asarray(x)).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(tree)]
    return xp.stack(parts).all(axis=0)


_are_finite_on_device = jax.jit(partial(_are_finite, xp=jnp))


def memory_bytes(device: jax.Device) -> int:
    """Memory that JAX may use of a device; 0 where it is not told, as of a CPU."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    return int((stats or {}).get("bytes_limit", 0))


def _n_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _stacked(state: TrainState, n: int) -> TrainState:
    return jax.tree.map(lambda x: jnp.stack([x] * n), state)._replace(step=state.step)
