"""record.zarr: the loss of every position at every step, and the live probes.

A Zarr v3 group that opens with ``xarray.open_zarr``. Arrays have the run's full length from the start and are NaN
where nothing has been recorded, so that no metadata changes during a run and a kill can never leave arrays of
different lengths; chunks are replaced whole, each with a checksum of its own. `load_record` cuts the unrecorded tail
off, and says where a chunk is lost: those of probes are there from the start, those of steps before their first step.

Units: loss in nats, `tokens` predicted before the step, `step_s` in seconds. Step s is the loss of the parameters
after s updates.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from icl_jax.config import SEEDS, Config, UserError
from icl_jax.rundir.files import is_bucket
from icl_jax.rundir.schedule import probe_steps
from icl_jax.rundir.seals import ATTRIBUTE, Tally, check_seal, files_under, seal, unusable

if TYPE_CHECKING:
    import xarray as xr
    import zarr

# Chunks of about 1 MiB: replacing the one being filled stays cheap, and a run has tens of files, not thousands.
_CHUNK_FLOATS = 2**18
HELD_OUT_AGAIN = "held_out_rows_in_training"
"""Attribute: how many held-out rows of a corpus of text are in training, too."""
_STEP_SCALARS = {
    "lr": ("1", "learning rate"),
    "grad_norm": ("1", "global norm of the gradient before clipping"),
    # Not "seconds": readers of CF conventions would make a time interval of it.
    "step_s": ("s", "wall-clock time of a step, mean over those fetched with it: 1 on CPU, 16 on accelerators"),
}
PROBE_SCALARS = {
    "icl_score": ("nats", "late minus early loss on held-out rows, single positions"),
    "icl_windowed": ("nats", "late minus early loss on held-out rows, windows"),
    "icl_score_sem": ("nats", "standard error of icl_score over held-out rows"),
    "icl_sem": ("nats", "standard error of icl_windowed over held-out rows"),
}
HEAD_SCORES = ("prefix_matching", "previous_token")
"""Scores of each layer's heads: the variables of measurements that are marked live."""
INTERVENED = "intervened"
"""Which interventions were on, in a run that has any."""
_OF_A_MEMBER = ("lr", "grad_norm")
"""Scalars of a step that each member has for itself."""
# A step counts where all its scalars do, a probe where this does: written last and cleared first, whatever is killed.
_PROBE_IS_COMPLETE = "icl_score"
# A loss that is not larger is read when the record is opened: what is damaged is said then, and not in a lazy read.
_SMALL_BYTES = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBlock:
    """Consecutive steps, ready to be recorded. Members' have their axis behind that of steps; NaN where one failed."""

    first_step: int
    loss: np.ndarray  # float32 [step, position]
    lr: np.ndarray
    grad_norm: np.ndarray
    step_s: np.ndarray  # [step], also with members
    intervened: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """[step, intervention], of members [step, member, intervention]; empty for a run without interventions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """The live measures of one step; head scores are [layer, head] and empty for a model without layers.

    Members' have their axis in front.
    """

    step: int
    icl_score: Any  # float, [member] with members
    icl_windowed: Any
    icl_score_sem: Any
    icl_sem: Any
    held_out_loss: np.ndarray  # [position]
    prefix_matching: np.ndarray
    previous_token: np.ndarray


class Record:
    """Writes record.zarr of one run."""

    def __init__(self, path: epath.Path, config: Config) -> None:
        self._config = config
        self._probe_index = {step: i for i, step in enumerate(probe_steps(config))}
        self._path = path
        import zarr

        with unusable(path, "cannot open the record"):
            self._group = zarr.open_group(str(path), mode="r+")
            self._last_counted = -1

    @classmethod
    def create(cls, path: epath.Path, config: Config, attributes: dict[str, Any]) -> "Record":
        """Lay out an empty record. `attributes` are stored on the group."""
        import zarr
        from zarr.codecs import ZstdCodec

        group = zarr.open_group(str(path), mode="w", zarr_format=3, attributes=attributes)
        n_steps, n_ctx = config.train.n_steps, config.model.n_ctx
        growing = ["step", "tokens"]
        # A chunk of fill values that is written is told from one that is lost.
        n_members = len(config.members)
        # Behind the axis that grows, so that chunks are of whole steps.
        member = ("member",) if n_members else ()
        sealing: Any = {"compressors": ZstdCodec(level=0, checksum=True), "config": {"write_empty_chunks": True}}

        def counter(name: str, dim: str, n: int, dtype: str, meaning: str) -> zarr.Array:
            return group.create_array(
                name, shape=(n,), chunks=(min(n, _CHUNK_FLOATS),), dtype=dtype, dimension_names=(dim,),
                attributes={"units": "1", "long_name": meaning}, **sealing,
            )  # fmt: skip

        def coordinate(name: str, dim: str, values: np.ndarray, meaning: str) -> None:
            counter(name, dim, len(values), str(values.dtype), meaning)[:] = values

        def empty(
            name: str, dims: tuple[str, ...], shape: tuple[int, ...], units: str, meaning: str, *, shared: bool = False
        ) -> None:
            if n_members and not shared:
                dims, shape = (dims[0], *member, *dims[1:]), (shape[0], n_members, *shape[1:])
            inner = int(np.prod(shape[1:], dtype=np.int64))
            chunk = (max(1, min(shape[0], _CHUNK_FLOATS // max(inner, 1))), *shape[1:])
            array = group.create_array(
                name, shape=shape, chunks=chunk, dtype="float32", fill_value=float("nan"), dimension_names=dims,
                attributes={"units": units, "long_name": meaning}, **sealing,
            )  # fmt: skip
            growing.append(name)
            if dims[0] == "probe":
                array[:] = np.float32("nan")

        counter("step", "step", n_steps, "int64", "updates before")
        coordinate("position", "position", np.arange(n_ctx, dtype=np.int32), "index t of the last token seen, BOS is 0")
        if n_members:
            coordinate("member", "member", np.arange(n_members, dtype=np.int32), "index of the member")
            for name, values in member_coordinates(config).items():
                coordinate(name, "member", values, f"{'train.seed' if name == 'seed' else name} of the member")
        counter("tokens", "step", n_steps, "int64", "tokens predicted in training before")
        empty("loss", ("step", "position"), (n_steps, n_ctx), "nats", "loss of predicting token t + 1, batch mean")
        if config.intervene:
            n = len(config.intervene)
            coordinate("intervention", "intervention", np.arange(n, dtype=np.int32), "number of the intervention")
            meaning = "1 where the intervention was on, else 0"
            empty(INTERVENED, ("step", "intervention"), (n_steps, n), "1", meaning)
        for name, (units, meaning) in _STEP_SCALARS.items():
            empty(name, ("step",), (n_steps,), units, meaning, shared=name not in _OF_A_MEMBER)
        probes = np.array(probe_steps(config), dtype=np.int64)
        if len(probes):
            coordinate("probe_step", "probe", probes, "updates before")
            coordinate("probe_tokens", "probe", probes * config.tokens_per_step, "tokens predicted in training before")
            for name, (units, meaning) in PROBE_SCALARS.items():
                empty(name, ("probe",), (len(probes),), units, meaning)
            meaning = "loss of predicting token t + 1, mean over held-out rows"
            empty("held_out_loss", ("probe", "position"), (len(probes), n_ctx), "nats", meaning)
            if config.model.n_layers:
                heads = (len(probes), config.model.n_layers, config.model.n_heads)
                for name in HEAD_SCORES:
                    empty(name, ("probe", "layer", "head"), heads, "1", f"{name.replace('_', '-')} score")
        with warnings.catch_warnings():
            # Consolidated metadata is xarray's fast way in; the Zarr v3 specification has yet to adopt it.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(path))
        record = cls(path, config)
        record._count(0, 1)
        seal(path, growing)
        return record

    def write_steps(self, block: StepBlock) -> None:
        """Store consecutive steps."""
        steps = slice(block.first_step, block.first_step + len(block.lr))
        self._count(steps.start, steps.stop)
        self._array("loss")[steps] = block.loss
        if self._config.intervene:
            self._array(INTERVENED)[steps] = block.intervened
        for name in _STEP_SCALARS:
            self._array(name)[steps] = getattr(block, name)

    def write_probe(self, result: ProbeResult) -> None:
        """Store the live measures of one step of the probe schedule."""
        index = self._probe_index[result.step]
        for name in self._probe_arrays():
            self._array(name)[index] = np.asarray(getattr(result, name), np.float32)

    def cut(self, step: int) -> None:
        """Forget everything from `step` on, so that a resumed run records no step twice.

        Raises UserError if the record is damaged or cannot be written.
        """
        with unusable(self._path, "cannot cut the record back"):
            if not is_bucket(self._path):  # a bucket shows no half-written objects
                for partial in Path(self._path).rglob("*.partial"):
                    partial.unlink()
            # The last to be written is the first to go: without it a step does not count.
            for name in (*reversed(_STEP_SCALARS), *([INTERVENED] if self._config.intervene else []), "loss"):
                array = self._array(name)
                # Not to its end: in a long run that would be a million chunks that are not there.
                array[step : max(step, self._written_to(array))] = np.float32("nan")
            first_probe = sum(s < step for s in self._probe_index)
            for name in reversed(self._probe_arrays()) if self._probe_index else ():
                self._array(name)[first_probe:] = np.float32("nan")

    def _count(self, first: int, end: int) -> None:
        """Make the chunks that these steps are in, and number them: all steps of a run may be too many to hold.

        `step` is the last: where it has a chunk, the others have it too, but for the loss.
        """
        for chunk in range(max(first // _CHUNK_FLOATS, self._last_counted + 1), (end - 1) // _CHUNK_FLOATS + 1):
            start = chunk * _CHUNK_FLOATS
            steps = np.arange(start, min(start + _CHUNK_FLOATS, self._config.train.n_steps), dtype=np.int64)
            part = slice(start, start + len(steps))
            if not (self._path / "step" / "c" / str(chunk)).exists():
                for name in _counted(self._config.members):
                    self._array(name)[part] = np.float32("nan")
                self._array("tokens")[part] = steps * self._config.tokens_per_step
                self._array("step")[part] = steps
            self._last_counted = chunk

    def _written_to(self, array: "zarr.Array") -> int:
        """The end of the last chunk of an array that there is."""
        folder = self._path / array.basename / "c"
        chunks = [int(chunk.name) for chunk in folder.iterdir() if chunk.name.isdigit()] if folder.exists() else []
        return min((max(chunks, default=-1) + 1) * array.chunks[0], array.shape[0])

    def _probe_arrays(self) -> list[str]:
        """In the order of writing. A record that an earlier version began has no standard errors."""
        heads = HEAD_SCORES if self._config.model.n_layers else ()
        others = [name for name in PROBE_SCALARS if name != _PROBE_IS_COMPLETE and name in self._group]
        return [*heads, "held_out_loss", *others, _PROBE_IS_COMPLETE]

    def _array(self, name: str) -> "zarr.Array":
        import zarr

        array = self._group[name]
        assert isinstance(array, zarr.Array)
        grows_by_itself = name in ("loss", INTERVENED) or (bool(self._config.members) and name in _OF_A_MEMBER)
        return array.with_config({"write_empty_chunks": not grows_by_itself})


def member_coordinates(config: Config) -> dict[str, np.ndarray]:
    """What members differ in, [member] each: `seed`, and other fields by their names."""
    return {
        "seed" if name == SEEDS else name: np.array(values, np.float64 if float in map(type, values) else np.int64)
        for name, values in config.member_fields.items()
    }


def _counted(has_members: object) -> tuple[str, ...]:
    """Scalars of which a chunk is as long as one of `step`, and there with it."""
    return tuple(name for name in _STEP_SCALARS if not (has_members and name in _OF_A_MEMBER))


def load_record(path: epath.Path, tally: Tally | None = None, index: int | None = None) -> "xr.Dataset":
    """What has been recorded so far, cut to the steps and probes that are complete; a large loss is read lazily.

    Dims step, position, probe, layer, head, and member where there are members; with `index` what that one would have
    recorded alone. Of a member that failed, all is NaN from that step on. Raises UserError if the record is missing or
    damaged.
    """
    import xarray as xr

    with unusable(path, "cannot read the record"):
        is_sealed = check_seal(path, tally)
        # An index would hold every step there will be: it is made of those that are there.
        record = xr.open_zarr(str(path), consolidated=False, create_default_indexes=False)
        record.attrs.pop(ATTRIBUTE, None)
        has_members = "member" in record.sizes
        n_steps = _n_recorded(path, [record[name] for name in _counted(has_members)])
        names = ("loss", *_OF_A_MEMBER, *([INTERVENED] if INTERVENED in record else []))
        lengths = {name: record[name].encoding["chunks"] for name in names}
        _check_chunks(path, n_steps, lengths, _counted(has_members), is_sealed)
        record = record.isel(step=slice(0, n_steps))
        of_members = [name for name, variable in record.variables.items() if variable.dims == ("member",)]
        if index is not None:
            record = _with_own_attributes(record.isel(member=index).drop_vars(of_members), index)
            n_steps = _n_recorded(path, [record[name] for name in _STEP_SCALARS])
            record = record.isel(step=slice(0, n_steps))
        for name, variable in record.variables.items():
            if name != "loss" or variable.nbytes <= _SMALL_BYTES:
                with unusable(path / str(name), "damaged"):
                    variable.load()
        record = record.set_xindex("step").set_xindex("position")
        if "probe" in record.sizes:
            is_complete = np.isfinite(record[_PROBE_IS_COMPLETE].values)
            # Of members, one that has not failed tells.
            is_complete = is_complete.any(axis=1) if is_complete.ndim == 2 else is_complete
            record = record.isel(probe=slice(0, _leading(is_complete)))
        for dim in ("member", "intervention"):
            if dim in record.sizes:
                record = record.set_xindex(dim)
    return record.set_coords([n for n in ("tokens", "probe_step", "probe_tokens", *of_members) if n in record])


def record_of_member(record: "xr.Dataset", index: int) -> "xr.Dataset":
    """What `load_record` with `index` gives, of the record of all: for who reads every member."""
    of_members = [name for name, variable in record.variables.items() if variable.dims == ("member",)]
    one = _with_own_attributes(record.isel(member=index).drop_vars(of_members), index)
    one = one.isel(step=slice(0, _leading(*(np.isfinite(one[name].values) for name in _STEP_SCALARS))))
    if "probe" in one.sizes:
        one = one.isel(probe=slice(0, _leading(np.isfinite(one[_PROBE_IS_COMPLETE].values))))
    return one


def _with_own_attributes(record: "xr.Dataset", index: int) -> "xr.Dataset":
    """Of what stands in a list for members with rows of their own, this one's."""
    again = record.attrs.get(HELD_OUT_AGAIN)
    return record.assign_attrs({HELD_OUT_AGAIN: again[index]}) if isinstance(again, list) else record


def _n_recorded(path: epath.Path, scalars: "list[xr.DataArray]") -> int:
    """Length of the leading stretch of steps that is recorded in all of these, read chunk by chunk."""

    def is_recorded(scalar: "xr.DataArray", part: slice) -> np.ndarray:
        with unusable(path / str(scalar.name), "damaged"):
            return np.isfinite(scalar[part].values)

    n_steps = scalars[0].size
    for start in range(0, n_steps, _CHUNK_FLOATS):
        part = slice(start, start + _CHUNK_FLOATS)
        n = _leading(*(is_recorded(scalar, part) for scalar in scalars))
        if n < min(_CHUNK_FLOATS, n_steps - start):
            return start + n
    return n_steps


def _check_chunks(
    path: epath.Path, n_steps: int, chunks_of: Mapping[str, tuple[int, ...]], counted_names: tuple[str, ...],
    is_sealed: bool,
) -> None:  # fmt: skip
    """Raise UserError where a chunk of a step array is lost.

    The loss, and what each member has, have those of the recorded steps. Of the others, which are written when a step
    first needs them, that of `step` is last: the rest must have as many.
    """
    wanted = {
        name: {f"c/{i}{'/0' * (len(chunks) - 1)}" for i in range(-(-n_steps // chunks[0]))}
        for name, chunks in chunks_of.items()
        if name not in counted_names
    }
    if is_sealed:
        counted = {f for f in files_under(path / "step") if f.startswith("c/")}
        wanted["step"] = {f"c/{i}" for i in range(max(1, -(-n_steps // _CHUNK_FLOATS)))}
        wanted |= dict.fromkeys(("tokens", *counted_names), counted | wanted["step"])
    for name, chunks in wanted.items():
        lost = sorted(chunks - set(files_under(path / name)))
        if lost:
            raise UserError(f"{path / name}: damaged: {len(lost)} of {len(chunks)} chunks missing, such as {lost[0]}")


def _leading(*is_recorded: np.ndarray) -> int:
    """Length of the leading stretch that is recorded in all arrays."""
    complete = np.logical_and.reduce(is_recorded)
    return int(len(complete) if complete.all() else np.argmin(complete))
