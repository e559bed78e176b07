"""manifest.jsonl: one line per snapshot, in the order of steps."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.files import reason, replace_text
from icl_jax.rundir.saved_arrays import SavedArray


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """One line of the manifest."""

    step: int
    """Updates that made these parameters."""
    tokens: int
    """Tokens predicted in training before this snapshot."""
    sha256: str
    """Over the parameters' bytes, see `params_sha256`."""
    n_bytes: int
    """Bytes of the parameters."""
    members: tuple[str | None, ...] = ()
    """Of a run with members the SHA-256 of each one's parameters, of which `sha256` is one; None: it had failed."""


def params_sha256(params: Mapping[str, np.ndarray | SavedArray]) -> str:
    """SHA-256 over name, type, shape and little-endian bytes of every parameter, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(params):
        array = params[name]
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        for piece in _pieces(array):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(array: np.ndarray | SavedArray) -> Iterator[memoryview]:
    if isinstance(array, SavedArray):
        yield from array.pieces()
    else:
        little = np.asarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        yield np.ascontiguousarray(little).reshape(-1).view(np.uint8).data  # no copy


def members_sha256(
    params: Mapping[str, np.ndarray | SavedArray], failed: Collection[int] = ()
) -> tuple[str | None, ...]:
    """`params_sha256` of each member, the member axis in front; None for those that have failed."""
    n = len(next(iter(params.values())))
    return tuple(
        None if k in failed else params_sha256({name: array[k] for name, array in params.items()}) for k in range(n)
    )


def hashes(params: dict[str, np.ndarray], failed: Collection[int] | None = None) -> tuple[str, tuple[str | None, ...]]:
    """SHA-256 of a snapshot, and of each of its members but those that failed; `failed` None: it has no members."""
    members = () if failed is None else members_sha256(params, failed)
    return joint_sha256(members) if members else params_sha256(params), members


def joint_sha256(members: tuple[str | None, ...]) -> str:
    """The one SHA-256 of a snapshot with members."""
    return hashlib.sha256("".join(f"{sha256}\n" for sha256 in members).encode()).hexdigest()


def snapshot_sha256(params: Mapping[str, np.ndarray | SavedArray], entry: SnapshotEntry) -> str:
    """SHA-256 of parameters as the entry has it: of all members that it lists, or of the one model."""
    if not entry.members:
        return params_sha256(params)
    failed = [k for k, sha256 in enumerate(entry.members) if sha256 is None]
    return joint_sha256(members_sha256(params, failed))


class Manifest:
    """The snapshots that a run directory promises to hold; with `index`, those of one member, to be read."""

    def __init__(self, path: epath.Path, index: int | None = None) -> None:
        self.path = path
        self._index = index

    def read(self) -> list[SnapshotEntry]:
        """All entries. Raises UserError naming the line that is not one."""
        entries = self._read()
        return entries if self._index is None else list(self._of_member(entries, self._index))

    @staticmethod
    def _of_member(entries: list[SnapshotEntry], index: int) -> Iterator[SnapshotEntry]:
        for entry in entries:
            sha256 = entry.members[index] if index < len(entry.members) else None
            if sha256 is not None:
                yield SnapshotEntry(entry.step, entry.tokens, sha256, entry.n_bytes // len(entry.members))

    def _read(self) -> list[SnapshotEntry]:
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be read: {reason(error)}") from None
        entries: list[SnapshotEntry] = []
        for number, line in enumerate(lines, start=1):
            raw = None
            try:
                raw = json.loads(line)
                entry = SnapshotEntry(**raw | {"members": tuple(raw.get("members", ()))})
                types = (type(entry.step), type(entry.tokens), type(entry.sha256), type(entry.n_bytes))
                is_valid = types == (int, int, str, int) and len(entry.sha256) == 64
                is_valid &= not entry.members or joint_sha256(entry.members) == entry.sha256
            except (ValueError, TypeError, AttributeError):
                is_valid = False
            if not is_valid:
                known = {field.name for field in fields(SnapshotEntry)}
                odd = next((name for name in raw if name not in known), None) if isinstance(raw, dict) else None
                what = f"line {number} = {line[:60]!r}" if odd is None else f"line {number}: unknown field {odd!r}"
                raise UserError(f"{self.path}: {what}: must be a JSON object with step, tokens, sha256 and n_bytes")
            if entries and entry.step <= entries[-1].step:
                raise UserError(f"{self.path}: line {number}: step = {entry.step}: steps must increase")
            entries.append(entry)
        return entries

    def write(self, entries: list[SnapshotEntry]) -> None:
        """Replace the file. Lines carry no times, so that a resumed run's manifest equals an unbroken run's."""
        if self._index is not None:
            raise ValueError("the manifest of a member is written with that of all")
        replace_text(self.path, "".join(json.dumps(_as_dict(entry)) + "\n" for entry in entries))

    def add(self, entry: SnapshotEntry) -> None:
        """Add one entry, in its place. The file is small and is replaced whole: object stores cannot append."""
        self.write(sorted([*self.read(), entry], key=lambda one: one.step))


def _as_dict(entry: SnapshotEntry) -> dict[str, Any]:
    """What a line says; of a run without members, nothing of them."""
    fields = asdict(entry)
    return fields if entry.members else {name: value for name, value in fields.items() if name != "members"}
