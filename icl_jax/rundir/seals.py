"""Seals: what must be in a store, bit for bit. A lost chunk of a Zarr array reads as its fill value, a good number.

A sealed Zarr group says in its attribute `seal`, for each of its arrays, how many files it has and a SHA-256 over their
names and bytes; the entry "" is over the group's own metadata. The seal is in the group's zarr.json, which is written
last or moved into place with all the rest: no kill leaves a seal that is out of date. Of arrays that grow while a run
is trained the metadata alone are hashed: their chunks carry checksums of their own. What else is a file of a run
directory is sealed in environment.json. Stores of before 2026-11-27 have no seal and are read as they are.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.files import is_bucket, reason, replace_text

ATTRIBUTE = "seal"
_GROUP, _METADATA = "", "zarr.json"
_OF_AN_ARRAY = re.compile(r"([^/]+)/(?:zarr\.json|c(?:/[0-9]+)*)")
_AT_ONCE = 32  # of a bucket's objects, each of which takes as long as a question does


@dataclass(slots=True)
class Tally:
    """What was checked, for the last line of `icl-jax verify`."""

    n_snapshots: int = 0
    n_states: int = 0
    sealed: dict[str, int] = field(default_factory=dict)
    """Stores whose seal holds, and how many arrays of each were compared with it."""
    unsealed: list[str] = field(default_factory=list)
    """Stores of before there were seals: what is lost of them cannot be seen."""


def sha256_of(data: bytes | str) -> str:
    """Hexadecimal, of a text in UTF-8."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def seal(path: epath.Path, growing: Collection[str] = ()) -> None:
    """Seal the Zarr group at `path` as it is now. `growing`: arrays of which chunks are yet to be written."""
    group = json.loads((path / _METADATA).read_text(encoding="utf-8"))
    group["attributes"].pop(ATTRIBUTE, None)
    group["attributes"][ATTRIBUTE] = {
        _GROUP: sha256_of(json.dumps(group, sort_keys=True)),
        **{
            name: {"n_files": len(files), "sha256": _digest(path, files[:1] if name in growing else files)}
            | ({"grows": True} if name in growing else {})
            for name, files in _arrays(path).items()
        },
    }
    replace_text(path / _METADATA, json.dumps(group))


def check_seal(path: epath.Path, tally: Tally | None = None) -> bool:
    """Whether a store has a seal. Raises UserError where it is not as it was sealed; see `seal_problems`."""
    tally = Tally() if tally is None else tally
    for problem in seal_problems(path, tally):
        raise UserError(problem)
    return path.name in tally.sealed


def seal_problems(path: epath.Path, tally: Tally | None = None) -> Iterator[str]:
    """A line for each array of a sealed group that is not whole, and for the group; nothing for one without a seal."""
    tally = Tally() if tally is None else tally
    try:
        group: dict[str, Any] = json.loads((path / _METADATA).read_text(encoding="utf-8"))
        attributes = group.get("attributes", {})
        entries: dict[str, Any] | None = attributes.pop(ATTRIBUTE, None)
    except (OSError, ValueError, AttributeError):
        entries = None  # who opens the store says what is wrong
    if entries is None:
        tally.unsealed.append(path.name)
        return
    n_problems = 0
    try:
        if entries[_GROUP] != sha256_of(json.dumps(group, sort_keys=True)):
            n_problems += 1
            yield f"{path / _METADATA}: damaged: its contents have changed since it was sealed"
        arrays = _arrays(path)
        for name, entry in entries.items():
            if name == _GROUP:
                continue
            files = arrays.pop(name, [])
            n_lost = entry["n_files"] - len(files)
            if n_lost > 0:
                what = f"{n_lost} of its {entry['n_files']} files {'is' if n_lost == 1 else 'are'} missing"
            elif _digest(path, files[:1] if entry.get("grows") else files) != entry["sha256"]:
                what = "its contents have changed since it was sealed"
            else:
                continue
            n_problems += 1
            yield f"{path / name}: damaged: {what}"
    except (OSError, KeyError, TypeError) as error:
        n_problems += 1
        yield f"{path}: damaged: its seal cannot be checked: {reason(error)}"
    if not n_problems:
        tally.sealed[path.name] = len(entries) - 1


def _arrays(path: epath.Path) -> dict[str, list[str]]:
    """Files of each array by name, relative to `path`, the metadata first, then chunks by name.

    Of the Zarr specification alone: Finder, Explorer, editors and NFS leave files of theirs in any folder.
    """
    arrays: dict[str, list[str]] = {}
    for name in sorted(files_under(path)):
        if (match := _OF_AN_ARRAY.fullmatch(name)) is not None:
            arrays.setdefault(match[1], []).append(name)
    return {name: sorted(files, key=lambda f: not f.endswith(_METADATA)) for name, files in arrays.items()}


def _digest(path: epath.Path, names: list[str]) -> str:
    """SHA-256 over names and contents of files."""

    def line(name: str) -> str:
        return f"{name} {sha256_of((path / name).read_bytes())}\n"

    if not is_bucket(path):
        return sha256_of("".join(map(line, names)))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return sha256_of("".join(pool.map(line, names)))


def files_under(path: epath.Path) -> list[str]:
    """All files of a folder at any depth, by their names relative to it, but for those that are being written."""
    if is_bucket(path):
        import fsspec  # zarr needs it for a bucket as well

        bucket, root = fsspec.core.url_to_fs(str(path))
        bucket.invalidate_cache()
        found = [name.removeprefix(root.rstrip("/") + "/") for name in bucket.find(root)]
    else:
        found = [file.relative_to(path).as_posix() for file in Path(path).rglob("*") if file.is_file()]
    return [name for name in found if not name.endswith(".partial")]


@contextlib.contextmanager
def unusable(path: epath.Path, what: str) -> Iterator[None]:
    """Raise UserError for whatever zarr, numcodecs and xarray raise: they have many types for a damaged store."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {what}: {reason(error)}") from error
