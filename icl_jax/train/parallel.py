"""The step over many devices: `pmap` with replicated parameters, or `jit` over a mesh with data and fsdp axes.

Both give the same numbers. State arrays are global arrays in either case, so that the loop, snapshots and probes need
not know which is in use.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from icl_jax.config import Config
from icl_jax.model.execution import Execution, resolve
from icl_jax.model.params import declarations, run_once
from icl_jax.rundir.checksum import checksum
from icl_jax.train.interventions import NOTHING, Interventions, Moment
from icl_jax.train.processes import from_all, is_first
from icl_jax.train.step import Axes, TrainState, init_state, train_step


def sharded_axes(config: Config) -> dict[str, int]:
    """Parameters cut over the fsdp axis, each along its longest axis that divides evenly; the rest are replicated.

    Never along the layer axis: a layer must be gathered alone.
    """
    n_shards = config.train.fsdp
    if n_shards == 1:
        return {}
    chosen = {}
    for name, declared in declarations(config.model).items():
        sizes = declared.shape
        candidates = [axis for axis in range(declared.is_stacked, len(sizes)) if sizes[axis] % n_shards == 0]
        if declared.sharded and candidates:
            chosen[name] = max(candidates, key=lambda axis: sizes[axis])
    return chosen


def _arranged(devices: list[jax.Device], shape: tuple[int, int]) -> np.ndarray:
    """Devices in a grid of this shape; on a TPU slice, rows and columns follow the sides of the torus.

    Rows then share no links with one another, nor do columns.
    """
    if devices[0].platform == "tpu":
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.array(devices).reshape(shape)


class ParallelStep:
    """The compiled step on a set of devices. `execution`: how it is computed; None resolves it.

    Raises UserError if the batch does not divide among them.
    """

    def __init__(self, config: Config, devices: list[jax.Device], execution: Execution | None = None) -> None:
        self.n_devices = len(devices)
        config.train.rows_per_device(self.n_devices)
        self._devices = devices
        self._config = config
        self._is_pmap = config.train.parallel == "pmap"
        self.platform = devices[0].platform
        if self._is_pmap:
            self._mesh = Mesh(np.array(devices), ("devices",))
            axes = Axes(("devices",), {})
        else:
            shape = (self.n_devices // config.train.fsdp, config.train.fsdp)
            self._mesh = Mesh(_arranged(devices, shape), ("data", "fsdp"))
            axes = Axes(("data", "fsdp"), sharded_axes(config))
        self._rows_sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        self._gather = jax.jit(lambda x: x, out_shardings=NamedSharding(self._mesh, PartitionSpec()))

        execution = execution or resolve(config.model, self.platform, config.train, self.n_devices)
        self._axes, self._execution = axes, execution
        self._under: dict[tuple[int, ...], Any] = {}
        self._put: tuple[Moment, Any] = (NOTHING, None)
        step = partial(train_step, config=config, axes=axes, execution=execution)
        self.state_shape = jax.eval_shape(lambda: init_state(config))
        specs = self._specs(self.state_shape, axes)
        self.state_sharding = jax.tree.map(lambda spec: NamedSharding(self._mesh, spec), specs)
        if self._is_pmap:
            self.step = jax.pmap(step, "devices", in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0)
        else:
            rows = PartitionSpec(axes.names)
            mapped = jax.shard_map(
                step, mesh=self._mesh, in_specs=(specs, rows), out_specs=(specs, PartitionSpec()), check_vma=False
            )
            self.step = jax.jit(mapped, donate_argnums=0)

    def under(self, moment: Moment, interventions: Interventions | None = None) -> Callable[[Any, Any], Any]:
        """The step with what is on at a moment; compiled for each set of interventions once."""
        if not moment.on or interventions is None:
            return self.step
        if moment.on not in self._under:
            self._under[moment.on] = self._compiled_under(moment.on, interventions)
        if self._put[0] is not moment:
            self._put = moment, put((moment.given, interventions.shared), self._mesh, PartitionSpec())
        program, given = self._under[moment.on], self._put[1]
        return lambda state, rows: program(state, rows, given)

    def _compiled_under(self, on: tuple[int, ...], interventions: Interventions) -> Any:
        axes = self._axes

        def step(state: TrainState, rows: jax.Array, given: Any) -> Any:
            own, shared = given
            intervened = interventions.intervened(on, own, shared, state.step, axes.names)
            fixed: dict[str, Any] = {"config": self._config, "axes": axes, "execution": self._execution}
            return train_step(state, rows, **fixed, intervened=intervened)

        if self._is_pmap:
            return jax.pmap(
                step, "devices", in_axes=(None, 0, None), out_axes=None, devices=self._devices, donate_argnums=0
            )
        specs, whole = self._specs(self.state_shape, axes), PartitionSpec()
        mapped = jax.shard_map(
            step, mesh=self._mesh, in_specs=(specs, PartitionSpec(axes.names), whole), out_specs=(specs, whole),
            check_vma=False,
        )  # fmt: skip
        return jax.jit(mapped, donate_argnums=0)

    @property
    def local_devices(self) -> list[jax.Device]:
        """Those of this process."""
        return [device for device in self._devices if device.process_index == jax.process_index()]

    @property
    def devices(self) -> list[jax.Device]:
        """In the order in which a compiled program numbers them."""
        return list(self._mesh.devices.flat)

    def lower(self) -> jax.stages.Lowered:
        """The step for shapes alone. Nothing is put on a device, which may be one of a slice that is not here."""
        n_rows, n_tokens = self._config.train.batch_size, self._config.model.n_ctx + 1
        per_device = (self.n_devices, n_rows // self.n_devices)
        rows_shape = (*per_device, n_tokens) if self._is_pmap else (n_rows, n_tokens)
        return self.step.lower(
            self.state_like, jax.ShapeDtypeStruct(rows_shape, np.int32, sharding=self._rows_sharding)
        )

    @staticmethod
    def _specs(abstract: TrainState, axes: Axes) -> Any:
        def spec(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
            name = getattr(path[-1], "key", None)
            if name not in axes.sharded:
                return PartitionSpec()
            return PartitionSpec(*(axes.names[-1] if i == axes.sharded[name] else None for i in range(leaf.ndim)))

        return jax.tree_util.tree_map_with_path(spec, abstract)

    def init_state(self) -> TrainState:
        """The state of step 0 over the devices. Each makes its own shards: a large model would not fit on one."""
        return run_once(lambda: init_state(self._config), out_shardings=self.state_sharding)

    def put_state(self, state: TrainState) -> TrainState:
        """Lay a state, equal on every process, out over the devices."""

        def put(value: Any, sharding: NamedSharding) -> jax.Array:
            host = np.asarray(value)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(put, state, self.state_sharding)

    def put_rows(self, rows: np.ndarray) -> jax.Array:
        """Lay this process's rows (its equal share of the global batch) out over its devices."""
        if self._is_pmap:
            per_device = rows.reshape(len(self.local_devices), -1, rows.shape[1])
            sharding = NamedSharding(self._mesh, PartitionSpec("devices"))
            return jax.make_array_from_process_local_data(sharding, per_device)
        return jax.make_array_from_process_local_data(self._rows_sharding, rows)

    def replicate(self, tree: Any) -> Any:
        """The whole of every array on this process's first device."""
        whole = jax.tree.map(lambda x: x if x.sharding.is_fully_replicated else self._gather(x), tree)
        return jax.tree.map(lambda x: x.addressable_data(0), whole)

    def to_host(self, tree: Any) -> Any:
        """Copies as NumPy arrays that outlive the donation of the originals. One at a time is whole on a device."""
        return jax.tree.map(lambda x: np.array(self.replicate(x), copy=True), tree)

    def to_first_host(self, tree: Any) -> Any:
        """`to_host` on process 0; the others, which only help to gather, keep nothing."""
        if is_first():
            return self.to_host(tree)
        for x in jax.tree.leaves(tree):
            self.replicate(x).block_until_ready()
        return None

    def over_all_devices(self, state: TrainState) -> TrainState:
        """The same buffers as arrays over all processes: pmap answers with arrays over the devices of this one."""

        def whole(x: jax.Array, sharding: NamedSharding) -> jax.Array:
            parts = [shard.data for shard in x.addressable_shards]
            return jax.make_array_from_single_device_arrays(x.shape, sharding, parts)

        return jax.tree.map(whole, state, self.state_sharding)

    @property
    def state_like(self) -> TrainState:
        """Shapes, types and shardings of a state."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            self.state_shape, self.state_sharding,
        )  # fmt: skip

    def is_finite(self, tree: Any) -> bool:
        """Whether all values of all processes are. Nothing is gathered, and nothing compiled on a CPU."""
        xp = np if self.platform == "cpu" else jnp
        finite = [xp.isfinite(part).all() for x in jax.tree.leaves(tree) for part, _ in _own_parts(x, xp)]
        return bool(from_all(np.array(all(map(bool, finite)))).all())

    def finite_members(self, trees: list[Any]) -> np.ndarray:
        """[member]: `is_finite` of each; here there is one."""
        return np.array([self.is_finite(trees)])

    def from_saved(self, state: TrainState) -> TrainState:
        """A state as it is loaded, as the step takes it."""
        return state

    def checksums(self, arrays: Mapping[str, jax.Array]) -> np.ndarray:
        """Of whole arrays, in the order of their names: every process adds up its shards, then all processes."""
        xp, take = (np, checksum) if self.platform == "cpu" else (jnp, _checksum_on_device)
        sums = [
            [take(part, start, arrays[name].shape, xp) for part, start in _own_parts(arrays[name], xp)]
            for name in sorted(arrays)
        ]
        own = np.array([sum(map(int, parts)) % 2**32 for parts in sums], np.uint32)
        return from_all(own).sum(axis=0, dtype=np.uint32)


def put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """NumPy arrays, equal on every process, over the devices of a mesh."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index]), tree
    )


_checksum_on_device = jax.jit(checksum, static_argnums=(2, 3))


def _own_parts(array: jax.Array, xp: ModuleType) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The shards that this process answers for, replicas left out, and where they begin. On a CPU without a copy."""
    for shard in array.addressable_shards:
        if shard.replica_id == 0:
            start = tuple(index.start or 0 for index in shard.index)
            yield (np.asarray(shard.data) if xp is np else shard.data), start
