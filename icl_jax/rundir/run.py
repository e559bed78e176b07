"""One run directory: creation, opening, snapshots and states."""

import json
import secrets
from dataclasses import dataclass
from typing import Any

import xarray as xr
from etils import epath

from icl_jax.config import Config, UserError, dump_config, load_config
from icl_jax.rundir.checkpoints import Arrays, load_arrays, remove_partial, save_arrays, saved_steps
from icl_jax.rundir.files import replace_text
from icl_jax.rundir.manifest import Manifest, SnapshotEntry, params_sha256
from icl_jax.rundir.record import Record, load_record

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run directory that exists. The path may be local or a bucket URL (``gs://...``)."""

    path: epath.Path
    config: Config
    environment: dict[str, Any]

    @classmethod
    def create(
        cls,
        path: str,
        config: Config,
        *,
        corpus_sha256: str,
        tokenizer_json: str | None = None,
        record_attributes: dict[str, object] | None = None,
    ) -> "RunDir":
        """Make a new run directory. Raises UserError if the folder holds something else or cannot be written."""
        root = epath.Path(path)
        try:
            if root.exists() and (not root.is_dir() or any(p.name != ".lock" for p in root.iterdir())):
                raise UserError(f"{root}: exists and is not a run directory; give --run another path")
            root.mkdir(parents=True, exist_ok=True)
            environment = {
                "schema_version": SCHEMA_VERSION,
                "run_id": secrets.token_hex(4),
                "corpus_sha256": corpus_sha256,
                "starts": [],
            }
            if tokenizer_json is not None:
                (root / "tokenizer.json").write_text(tokenizer_json)
            Record.create(root / "record.zarr", config, {"schema_version": SCHEMA_VERSION, **(record_attributes or {})})
            replace_text(root / "environment.json", json.dumps(environment, indent=1))
            # Last: a folder is a run directory once it has a config.
            replace_text(root / "config.toml", dump_config(config))
        except OSError as error:
            raise UserError(f"{root}: cannot write the run directory: {error.strerror or error}") from error
        return cls(root, config, environment)

    @classmethod
    def open(cls, path: str) -> "RunDir":
        """Open an existing run directory. Raises UserError if it is none, is damaged or has a newer schema."""
        root = epath.Path(path)
        if not root.exists():
            raise UserError(f"{root}: no such run directory")
        if not cls.is_run(path):
            raise UserError(f"{root}: not a run directory: it has no config.toml")
        environment_path = root / "environment.json"
        try:
            environment = json.loads(environment_path.read_text())
            version = environment["schema_version"]
            is_valid = isinstance(version, int) and isinstance(environment["run_id"], str)
        except (OSError, ValueError, KeyError, TypeError):
            is_valid = False
        if not is_valid:
            raise UserError(f"{environment_path}: missing or damaged; it must be a JSON object with schema_version and run_id")
        if version > SCHEMA_VERSION:
            allowed = f"this icl-jax reads up to {SCHEMA_VERSION}; install a newer one"
            raise UserError(f"{environment_path}: schema_version = {version}: {allowed}")
        return cls(root, load_config(root / "config.toml"), environment)

    @staticmethod
    def is_run(path: str) -> bool:
        return (epath.Path(path) / "config.toml").exists()

    @property
    def run_id(self) -> str:
        """Eight hexadecimal digits that stay the same through every resume."""
        return str(self.environment["run_id"])

    @property
    def manifest(self) -> Manifest:
        return Manifest(self.path / "manifest.jsonl")

    def add_start(self, start: dict[str, Any]) -> None:
        """Note a start or resume: time, step, versions, devices, processes, commit, command line."""
        self.environment["starts"].append(start)
        replace_text(self.path / "environment.json", json.dumps(self.environment, indent=1))

    def open_record(self) -> Record:
        """The record, for writing."""
        return Record(self.path / "record.zarr", self.config)

    def load_record(self) -> xr.Dataset:
        """The record so far, see `icl_jax.rundir.record.load_record`."""
        return load_record(self.path / "record.zarr")

    def save_snapshot(self, step: int, params: Arrays) -> None:
        """Save parameters and then add them to the manifest. The manifest never names half a snapshot."""
        save_arrays(self.path / "snapshots" / str(step), params)
        n_bytes = sum(array.nbytes for array in params.values())
        tokens = step * self.config.tokens_per_step
        self.manifest.append(SnapshotEntry(step, tokens, params_sha256(params), n_bytes))

    def load_params(self, step: int) -> Arrays:
        """The parameters after `step` updates, checked against the manifest.

        Raises UserError if there is no such snapshot, or if it is damaged or not the one that the manifest names.
        """
        entries = {entry.step: entry for entry in self.manifest.read()}
        if step not in entries:
            near = ", ".join(str(s) for s in sorted(entries, key=lambda s: abs(s - step))[:3]) or "none"
            raise UserError(f"{self.path}: no snapshot of step {step}; the nearest are {near}")
        params = load_arrays(self.path / "snapshots" / str(step))
        found = params_sha256(params)
        if found != entries[step].sha256:
            twin = next((entry.step for entry in entries.values() if entry.sha256 == found), None)
            what = f"it holds the parameters of step {twin}" if twin is not None else "its contents have changed"
            raise UserError(f"{self.path / 'snapshots' / str(step)}: SHA-256 differs from the manifest: {what}")
        return params

    def save_state(self, step: int, state: Arrays) -> None:
        """Save the full state and drop all but the last `snapshots.keep_states`."""
        folder = self.path / "state"
        save_arrays(folder / str(step), state)
        for old in saved_steps(folder)[: -self.config.snapshots.keep_states]:
            (folder / str(old)).rmtree()

    def last_state_step(self) -> int | None:
        """The step that the run can be resumed from, or None if no full state was saved."""
        steps = saved_steps(self.path / "state")
        return steps[-1] if steps else None

    def load_state(self, step: int) -> Arrays:
        return load_arrays(self.path / "state" / str(step))

    def cut(self, step: int) -> None:
        """Take the directory back to the state before step `step`: record, snapshots, manifest and states."""
        self.open_record().cut(step)
        self.manifest.write([entry for entry in self.manifest.read() if entry.step < step])
        for folder, first_gone in ((self.path / "snapshots", step), (self.path / "state", step + 1)):
            remove_partial(folder)
            for later in saved_steps(folder):
                if later >= first_gone:
                    (folder / str(later)).rmtree()

