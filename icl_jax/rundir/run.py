"""One run directory: creation, opening, its members, what a resume cuts off."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from etils import epath

from icl_jax.config import Config, UserError, dump_config, parse_config
from icl_jax.config.what_it_is import what_it_is
from icl_jax.rundir import checkpoints
from icl_jax.rundir.checkpoints import remove_partial, saved_steps
from icl_jax.rundir.files import check_path, reason, replace_text
from icl_jax.rundir.held_out import HeldOut
from icl_jax.rundir.members import MEMBERS, member_of
from icl_jax.rundir.place import HELD_OUT, OWN_HELD_OUT, check_sha256, writing
from icl_jax.rundir.record import Record
from icl_jax.rundir.seals import sha256_of
from icl_jax.rundir.snapshots import Snapshots
from icl_jax.rundir.states import States

SCHEMA_VERSION = 2
SCHEMA_VERSION_MEMBERS = 3
"""Of a run with members; the newest that is read."""
_MADE_BEFORE_CONFIG = {"environment.json", "tokenizer.json", "record.zarr", HELD_OUT, OWN_HELD_OUT}


@dataclass(frozen=True, slots=True)
class RunDir(Snapshots, States):
    """A run directory that exists. The path may be local or a bucket URL (``gs://...``).

    With `index` it is a view of one member of a run with members, to be read as the same run alone would be: `path` is
    then RUN/members/INDEX, where its analysis and reports go, and all else lies in `root`, which is RUN.
    """

    @classmethod
    def create(
        cls,
        path: str,
        config: Config,
        *,
        corpus_sha256: str,
        tokenizer_json: str | None = None,
        record_attributes: dict[str, object] | None = None,
        held_out: HeldOut | Mapping[int, HeldOut] | None = None,
        imported: dict[str, Any] | None = None,
        said: Mapping[str, Any] | None = None,
    ) -> "RunDir":
        """Make a new run directory. Raises UserError if the folder holds something else or cannot be written.

        Without `held_out` it can be trained in, but not analyzed; where members have rows of their own, it is one for
        each data.seed. `imported`: where its snapshots are from; such a run has no record. `said`: further entries of
        environment.json.
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
        with writing(root):
            cls.check_free(path)
            root.mkdir(parents=True, exist_ok=True)
            # First: what a kill leaves is then known as ours.
            replace_text(root / "environment.json", json.dumps(environment, indent=1))
            if tokenizer_json is not None:
                (root / "tokenizer.json").write_bytes(tokenizer_json.encode())
            if imported is None:
                attributes = {"schema_version": environment["schema_version"], **(record_attributes or {})}
                Record.create(root / "record.zarr", config, attributes)
            if isinstance(held_out, HeldOut):
                held_out.save(root / HELD_OUT)
            for seed, own in held_out.items() if isinstance(held_out, Mapping) else ():
                own.save(root / OWN_HELD_OUT / f"{seed}.zarr")
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
        if (kind := what_it_is(path)) not in ("folder", ""):
            raise UserError(f"{root}: is a {kind}; --run must be a folder")
        if not root.exists():
            above = next((folder for folder in root.parents if what_it_is(folder)), root)
            if (kind := what_it_is(above)) not in ("folder", ""):
                raise UserError(f"{root}: cannot write the run directory: {above} is a {kind}")
            return
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
            nothing = what_it_is(path)
            raise UserError(f"{root}: is a {nothing}" if nothing else f"{root}: no such run directory")
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
            check_sha256(config_path, environment, text, f"{error}; ")
            raise
        check_sha256(config_path, environment, text)
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

    def read_tokenizer(self) -> str | None:
        """tokenizer.json; None where the corpus has none. Raises UserError if it is not the one that was saved."""
        path = self.root / "tokenizer.json"
        try:
            text = path.read_bytes().decode() if path.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: damaged: {reason(error)}") from None
        check_sha256(path, self.environment, text)
        return text

    def add_start(self, start: dict[str, Any]) -> None:
        """Note a start or resume: time, step, versions, devices, processes, commit, command line, changed fields."""
        self.environment["starts"].append(start)
        self.save_environment()

    def save_environment(self) -> None:
        """Write `environment` as it is now. Raises UserError if it cannot be written."""
        with writing(self.root):
            replace_text(self.root / "environment.json", json.dumps(self.environment, indent=1))

    def open_record(self) -> Record:
        """The record, for writing."""
        return Record(self.path / "record.zarr", self.config)

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
        with writing(self.path):
            self.manifest.write(kept)
            self.remove_partial()
            for folder, first_gone in ((self.path / "snapshots", step), (self.path / "state", step + 1)):
                for later in saved_steps(folder):
                    if later >= first_gone:
                        checkpoints.remove_arrays(folder / str(later))

    def remove_unlisted(self) -> None:
        """Remove snapshots that a killed import left out of the manifest. Raises UserError as `remove_partial` does."""
        self.remove_partial()
        listed = {entry.step for entry in self.manifest.read()}
        with writing(self.path):
            for step in set(saved_steps(self.path / "snapshots")) - listed:
                checkpoints.remove_arrays(self.path / "snapshots" / str(step))

    def remove_partial(self) -> None:
        """Remove what a killed save or removal left. Raises UserError if the directory cannot be written."""
        with writing(self.path):
            for name in ("snapshots", "state"):
                remove_partial(self.path / name)
