"""manifest.jsonl: one line per snapshot, in the order of steps."""

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.files import reason, replace_text


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


def params_sha256(params: dict[str, np.ndarray]) -> str:
    """SHA-256 over name, type, shape and little-endian bytes of every parameter, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(params):
        array = np.asarray(params[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()


class Manifest:
    """The snapshots that a run directory promises to hold."""

    def __init__(self, path: epath.Path) -> None:
        self.path = path

    def read(self) -> list[SnapshotEntry]:
        """All entries. Raises UserError naming the line that is not one."""
        if not self.path.exists():
            return []
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be read: {reason(error)}") from None
        entries: list[SnapshotEntry] = []
        for number, line in enumerate(lines, start=1):
            try:
                raw = json.loads(line)
                entry = SnapshotEntry(**raw)
                types = (type(entry.step), type(entry.tokens), type(entry.sha256), type(entry.n_bytes))
                is_valid = types == (int, int, str, int) and len(entry.sha256) == 64
            except (ValueError, TypeError):
                is_valid = False
            if not is_valid:
                allowed = "must be a JSON object with step, tokens, sha256 and n_bytes"
                raise UserError(f"{self.path}: line {number} = {line[:60]!r}: {allowed}")
            if entries and entry.step <= entries[-1].step:
                raise UserError(f"{self.path}: line {number}: step = {entry.step}: steps must increase")
            entries.append(entry)
        return entries

    def write(self, entries: list[SnapshotEntry]) -> None:
        """Replace the file. Lines carry no times, so that a resumed run's manifest equals an unbroken run's."""
        replace_text(self.path, "".join(json.dumps(asdict(entry)) + "\n" for entry in entries))

    def add(self, entry: SnapshotEntry) -> None:
        """Add one entry, in its place. The file is small and is replaced whole: object stores cannot append."""
        self.write(sorted([*self.read(), entry], key=lambda one: one.step))
