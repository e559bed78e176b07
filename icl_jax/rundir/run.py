"""One run directory: creation, opening, snapshots and states."""

import contextlib
import json
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from icl_jax.config import Config, UserError, dump_config, parse_config
from icl_jax.rundir.agreement import read_snapshots
from icl_jax.rundir.checkpoints import (
    Arrays,
    load_arrays,
    load_sharded,
    remove_arrays,
    remove_partial,
    save_arrays,
    save_sharded,
    saved_steps,
)
from icl_jax.rundir.checksum import checksum_of
from icl_jax.rundir.files import check_path, reason, replace_text
from icl_jax.rundir.held_out import HeldOut, load_held_out
from icl_jax.rundir.manifest import (
    Manifest,
    SnapshotEntry,
    hashes,
    params_sha256,
    snapshot_sha256,
)
from icl_jax.rundir.members import MEMBERS, member_of, of_member
from icl_jax.rundir.record import Record, load_record
from icl_jax.rundir.seals import Tally, sha256_of

if TYPE_CHECKING:
    import jax
    import xarray as xr

SCHEMA_VERSION = 2
SCHEMA_VERSION_MEMBERS = 3
"""Of a run with members; the newest that is read."""
# An array of each state, over all the others; states of before 2026-11-27 have a SHA-256, of before 2026-11-25 nothing.
_STATE_CHECKSUMS = "checksums"
_STATE_SHA256 = "sha256"
_MADE_BEFORE_CONFIG = {"environment.json", "tokenizer.json", "record.zarr", "held_out.zarr"}


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run directory that exists. The path may be local or a bucket URL (``gs://...``).

    With `index` it is a view of one member of a run with members, to be read as the same run alone would be: `path` is
    then RUN/members/INDEX, where its analysis and reports go, and all else lies in `root`, which is RUN.
    """

    path: epath.Path
    config: Config
    environment: dict[str, Any]
    index: int | None = None

    @classmethod
    def create(
        cls,
        path: str,
        config: Config,
        *,
        corpus_sha256: str,
        tokenizer_json: str | None = None,
        record_attributes: dict[str, object] | None = None,
        held_out: HeldOut | None = None,
        imported: dict[str, Any] | None = None,
        said: Mapping[str, Any] | None = None,
    ) -> "RunDir":
        """Make a new run directory. Raises UserError if the folder holds something else or cannot be written.

        Without `held_out` it can be trained in, but not analyzed. `imported`: where its snapshots are from; such a run
        has no record. `said`: further entries of environment.json.
        """
        root = epath.Path(path)
        environment = {
            "schema_version": SCHEMA_VERSION_MEMBERS if config.members else SCHEMA_VERSION,
            "run_id": secrets.token_hex(4),
            "corpus_sha256": corpus_sha256,
            "sha256": {"config.toml": sha256_of(dump_config(config))}
            | ({} if tokenizer_json is None else {"tokenizer.json": sha256_of(tokenizer_json)}),
            "starts": [],
        }
        if imported is not None:
            environment["imported"] = imported
        environment |= said or {}
        with _writing(root):
            cls.check_free(path)
            root.mkdir(parents=True, exist_ok=True)
            # First: what a kill leaves is then known as ours.
            replace_text(root / "environment.json", json.dumps(environment, indent=1))
            if tokenizer_json is not None:
                (root / "tokenizer.json").write_bytes(tokenizer_json.encode())
            if imported is None:
                attributes = {"schema_version": environment["schema_version"], **(record_attributes or {})}
                Record.create(root / "record.zarr", config, attributes)
            if held_out is not None:
                held_out.save(root / "held_out.zarr")
            # Last: a folder is a run directory once it has a config.
            replace_text(root / "config.toml", dump_config(config))
        return cls(root, config, environment)

    @staticmethod
    def check_free(path: str) -> None:
        """Raise UserError unless a run can be made here: in no folder, an empty one, or what a killed start left."""
        check_path(path)
        root = epath.Path(path)
        if (one := member_of(path)) is not None:
            what = f"is member {one[1]} of {one[0]}, which is trained as one"
            raise UserError(f"{root}: {what}: icl-jax split makes a run of it")
        if not root.exists():
            return
        if not root.is_dir():
            raise UserError(f"{root}: is a file; --run must be a folder")
        found = {entry.name for entry in root.iterdir()} - {
            ".lock",
            ".environment.json.partial",
            ".config.toml.partial",
        }
        if found and not ("environment.json" in found and found <= _MADE_BEFORE_CONFIG):
            allowed = "must be a run directory, an empty folder or a new path"
            raise UserError(f"{root}: holds {min(found)!r} and is not a run directory; --run {allowed}")

    @classmethod
    def open(cls, path: str) -> "RunDir":
        """Open an existing run directory, or RUN/members/K, a member of one.

        Raises UserError if it is none, is damaged or has a newer schema.
        """
        check_path(path)
        if (found := member_of(path)) is not None:
            return cls.open(found[0]).member(found[1])
        root = epath.Path(path)
        if not root.exists():
            raise UserError(f"{root}: no such run directory")
        if not cls.is_run(path):
            raise UserError(f"{root}: not a run directory: it has no config.toml")
        environment_path = root / "environment.json"
        try:
            environment = json.loads(environment_path.read_text(encoding="utf-8"))
            version = environment["schema_version"]
            types = (type(version), type(environment["run_id"]), type(environment["starts"]))
            is_valid = types == (int, str, list)
        except (OSError, ValueError, KeyError, TypeError):
            is_valid = False
        if not is_valid:
            allowed = "it must be a JSON object with schema_version, run_id and starts"
            raise UserError(f"{environment_path}: missing or damaged; {allowed}")
        if version > SCHEMA_VERSION_MEMBERS:
            allowed = f"this icl-jax reads up to {SCHEMA_VERSION_MEMBERS}; install a newer one"
            raise UserError(f"{environment_path}: schema_version = {version}: {allowed}")
        config_path = root / "config.toml"
        try:
            text = config_path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{config_path}: cannot read the config: {reason(error)}") from None
        try:
            config = parse_config(text, str(config_path))
        except UserError as error:
            _check_sha256(config_path, environment, text, f"{error}; ")
            raise
        _check_sha256(config_path, environment, text)
        return cls(root, config, environment)

    @staticmethod
    def is_run(path: str) -> bool:
        return (epath.Path(path) / "config.toml").exists()

    def member(self, index: int) -> "RunDir":
        """One member of a run with members, counted from 0. Raises UserError if there is no such member."""
        try:
            config = self.config.member(index)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        return replace(self, path=self.path / MEMBERS / str(index), config=config, index=index)

    def each(self) -> "list[RunDir]":
        """The members of a run with members, or the run itself."""
        return [self.member(k) for k in range(len(self.config.members))] if self.config.members else [self]

    def one(self) -> "RunDir":
        """This run, where it is one model's. Raises UserError for a run with members that says how to name one."""
        if self.config.members:
            n = len(self.config.members)
            raise UserError(f"{self.path}: has {n} members: name one, such as {self.path / MEMBERS / '0'}")
        return self

    @property
    def root(self) -> epath.Path:
        """The folder that was trained in: `path`, or of a member that of all."""
        return self.path if self.index is None else self.path.parent.parent

    @property
    def run_id(self) -> str:
        """Eight hexadecimal digits that stay the same through every resume; of a member with its number behind."""
        run_id = str(self.environment["run_id"])
        return run_id if self.index is None else f"{run_id}-{self.index}"

    @property
    def imported(self) -> dict[str, Any] | None:
        """Where the snapshots are from, of a run that was not trained here; see docs/run-directory.md."""
        found = self.environment.get("imported")
        return found if isinstance(found, dict) else None

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.root / "manifest.jsonl", self.index)

    def read_snapshots(self) -> list[SnapshotEntry]:
        """Snapshots of the run in order. Raises UserError if the manifest is damaged or lacks some."""
        return read_snapshots(self)

    def read_tokenizer(self) -> str | None:
        """tokenizer.json; None where the corpus has none. Raises UserError if it is not the one that was saved."""
        path = self.root / "tokenizer.json"
        try:
            text = path.read_bytes().decode() if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: damaged: {reason(error)}") from None
        _check_sha256(path, self.environment, text)
        return text

    def add_start(self, start: dict[str, Any]) -> None:
        """Note a start or resume: time, step, versions, devices, processes, commit, command line, changed fields."""
        self.environment["starts"].append(start)
        self.save_environment()

    def save_environment(self) -> None:
        """Write `environment` as it is now. Raises UserError if it cannot be written."""
        with _writing(self.root):
            replace_text(self.root / "environment.json", json.dumps(self.environment, indent=1))

    def open_record(self) -> Record:
        """The record, for writing."""
        return Record(self.path / "record.zarr", self.config)

    def load_record(self, tally: Tally | None = None) -> "xr.Dataset":
        """The record so far, see `icl_jax.rundir.record.load_record`. Raises UserError for an imported run."""
        if self.imported is not None:
            raise UserError(f"{self.path}: has no record: its snapshots were imported, not trained here")
        return load_record(self.root / "record.zarr", tally, self.index)

    def load_held_out(self, tally: Tally | None = None) -> HeldOut:
        """The rows and tokens that analysis measures on. Raises UserError if the run has none."""
        return load_held_out(self.root / "held_out.zarr", tally)

    def save_snapshot(self, step: int, params: Arrays, tokens: int | None = None, failed: Collection[int] = ()) -> None:
        """Save parameters and then add them to the manifest. The manifest never names half a snapshot.

        tokens: predicted in training before; None: what the config says. failed: members that it does not list.
        """
        with ThreadPoolExecutor(1) as beside:
            hashing = beside.submit(hashes, params, failed if self.config.members else None)
            save_arrays(self.path / "snapshots" / str(step), params)
        n_bytes = sum(array.nbytes for array in params.values())
        tokens = step * self.config.tokens_per_step if tokens is None else tokens
        sha256, members = hashing.result()
        self.manifest.add(SnapshotEntry(step, tokens, sha256, n_bytes, members))

    def snapshots(self) -> list[SnapshotEntry]:
        """What `read_snapshots` finds. Raises UserError where that is nothing."""
        entries = self.read_snapshots()
        if not entries:
            raise UserError(f"{self.path}: has no snapshots yet")
        return entries

    def snapshot(self, step: int) -> SnapshotEntry:
        """The manifest's entry of a step. Raises UserError if it has none."""
        entries = {entry.step: entry for entry in self.manifest.read()}
        if step not in entries:
            near = ", ".join(str(s) for s in sorted(entries, key=lambda s: abs(s - step))[:3]) or "none"
            raise UserError(f"{self.path}: no snapshot of step {step}; the nearest are {near}")
        return entries[step]

    def load_params(self, step: int) -> Arrays:
        """The parameters after `step` updates, checked against the manifest; float32, however they are saved.

        Of a run with members all of theirs, the member axis in front; of members that had failed whatever is there.
        Raises UserError if there is no such snapshot, or if it is damaged or not the one that the manifest names.
        """
        entry = self.snapshot(step)
        params, found = self.read_params(entry)
        if found != entry.sha256:
            twin = next((other.step for other in self.manifest.read() if other.sha256 == found), None)
            what = f"it holds the parameters of step {twin}" if twin is not None else "its contents have changed"
            raise UserError(f"{self.root / 'snapshots' / str(step)}: SHA-256 differs from the manifest: {what}")
        return {name: array.astype(np.float32, copy=False) for name, array in params.items()}

    def read_params(self, entry: SnapshotEntry) -> tuple[Arrays, str]:
        """The parameters of a snapshot as they are on disk, and their SHA-256. Raises UserError if they are damaged."""
        path = self.root / "snapshots" / str(entry.step)
        params = load_arrays(path)
        if self.index is not None:
            params = of_member(params, self.index, path)
        return params, snapshot_sha256(params, entry)

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Save the full state of one process, and wait until it is on disk. See `begin_state`."""
        names = sorted(state)
        checksums = np.array([checksum_of(np.asarray(state[name])) for name in names], np.uint32)
        self.begin_state(step, state, checksums)()

    def begin_state(
        self,
        step: int,
        state: Mapping[str, Any],
        checksums: np.ndarray,
        may_appear: Callable[[], object] = lambda: None,
    ) -> Callable[[], None]:
        """Begin to save the full state, each process its shards; every process must call it.

        checksums: of the arrays in the order of their names, see `icl_jax.rundir.checksum`. The state appears after
        `may_appear` has returned. The answer waits until it is on disk, then drops all but the last
        `snapshots.keep_states`. A state that is there already is left: it is the one that the run was resumed from.
        """
        folder = self.path / "state"
        if step in saved_steps(folder):
            return lambda: None
        saving = save_sharded(folder / str(step), {**state, _STATE_CHECKSUMS: checksums}, may_appear)

        def finish() -> None:
            import jax

            saving.close()
            if jax.process_index() == 0:
                for old in saved_steps(folder)[: -self.config.snapshots.keep_states]:
                    remove_arrays(folder / str(old))

        return finish

    def last_state_step(self) -> int | None:
        """The step that the run can be resumed from, or None if no full state was saved."""
        steps = saved_steps(self.root / "state")
        return steps[-1] if steps else None

    def load_state(self, step: int) -> Arrays:
        """The whole of a saved state. Raises UserError if it is missing, damaged or not the state of that step."""
        path = self.root / "state" / str(step)
        state = load_arrays(path)
        saved_sha256, checksums = state.pop(_STATE_SHA256, None), state.pop(_STATE_CHECKSUMS, None)
        _check_step(path, step, state.get("step"))
        if saved_sha256 is not None:
            sha256 = np.frombuffer(bytes.fromhex(params_sha256(state)), np.uint8)
            if not np.array_equal(saved_sha256, sha256):
                raise UserError(f"{path}: SHA-256 differs from the one saved with it: its contents have changed")
        if checksums is not None:
            found = np.array([checksum_of(state[name]) for name in sorted(state)], np.uint32)
            _check_checksums(path, sorted(state), found, checksums)
        if self.index is None:
            return state
        # The step is that of all.
        per_member = {name: array for name, array in state.items() if name != "step"}
        return {**of_member(per_member, self.index, path), "step": state["step"]}

    def load_state_sharded(
        self, step: int, like: Mapping[str, "jax.ShapeDtypeStruct"], checksums_of: Callable[[Any], np.ndarray]
    ) -> "dict[str, jax.Array]":
        """A saved state with the shardings of `like`, each process its shards; every process must call it.

        `checksums_of` takes those of the loaded arrays in the order of their names. Raises UserError as `load_state`
        does, and where a name, shape or type is not that of `like`.
        """
        path = self.path / "state" / str(step)
        state = load_sharded(path, like)
        checksums = state.pop(_STATE_CHECKSUMS, None)
        if state.pop(_STATE_SHA256, None) is not None:  # of schema 1: over all arrays whole
            self.load_state(step)
        _check_step(path, step, state["step"])
        if checksums is not None:
            _check_checksums(path, sorted(state), checksums_of(state), np.asarray(checksums))
        return state

    def cut(self, step: int) -> None:
        """Take the directory back to the state before step `step`: record, snapshots, manifest and states.

        Raises UserError if the record or the manifest is damaged, or if the directory cannot be written.
        """
        kept = [entry for entry in self.manifest.read() if entry.step < step]
        n_recorded = self.load_record().sizes["step"]
        if n_recorded < step:
            what = f"holds {n_recorded} steps, but the state of step {step} was saved"
            raise UserError(f"{self.path / 'record.zarr'}: {what}; icl-jax verify tells more")
        self.open_record().cut(step)
        with _writing(self.path):
            self.manifest.write(kept)
            self.remove_partial()
            for folder, first_gone in ((self.path / "snapshots", step), (self.path / "state", step + 1)):
                for later in saved_steps(folder):
                    if later >= first_gone:
                        remove_arrays(folder / str(later))

    def remove_unlisted(self) -> None:
        """Remove snapshots that a killed import left out of the manifest. Raises UserError as `remove_partial` does."""
        self.remove_partial()
        listed = {entry.step for entry in self.manifest.read()}
        with _writing(self.path):
            for step in set(saved_steps(self.path / "snapshots")) - listed:
                remove_arrays(self.path / "snapshots" / str(step))

    def remove_partial(self) -> None:
        """Remove what a killed save or removal left. Raises UserError if the directory cannot be written."""
        with _writing(self.path):
            for name in ("snapshots", "state"):
                remove_partial(self.path / name)


def _check_sha256(path: epath.Path, environment: Mapping[str, Any], text: str | None, said: str = "") -> None:
    """Raise UserError for a file that is not as environment.json says; in runs of before 2026-11-27 it says nothing."""
    expected = environment.get("sha256", {}).get(path.name)
    if expected is not None and text is None:
        raise UserError(f"{path}: missing; environment.json says that it should be there")
    if expected is not None and text is not None and sha256_of(text) != expected:
        raise UserError(f"{said}{path}: damaged: SHA-256 differs from the one in environment.json")


def _check_step(path: epath.Path, step: int, saved: Any) -> None:
    if saved is None or saved.shape != ():
        raise UserError(f"{path}: is not a training state: it has no step")
    if int(saved) != step:
        raise UserError(f"{path}: swapped: it holds the state of step {int(saved)}")


def _check_checksums(path: epath.Path, names: list[str], found: np.ndarray, saved: np.ndarray) -> None:
    if not np.array_equal(found, saved):
        changed = [name for name, a, b in zip(names, found, saved, strict=False) if a != b]
        what = f"{changed[0]}'s checksum" if changed else "the number of its arrays"
        raise UserError(f"{path}: {what} differs from the one saved with it: its contents have changed")


@contextlib.contextmanager
def _writing(root: epath.Path) -> Iterator[None]:
    """Raise UserError where the operating system refuses to write."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{root}: cannot write the run directory: {error.strerror or error}") from error
