"""Files of text: which there are, whether one has changed, what it is written in, and its text."""

import fnmatch
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from icl_jax.config import UserError
from icl_jax.config.what_it_is import what_it_is

_ALLOWED = "must be UTF-8 text, or such text in .gz or .zst"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# First bytes of what is no text, the longer ones first: UTF-32's begin with UTF-16's.
_NOT_TEXT = {
    b"\xff\xfe\0\0": "UTF-32 text", b"\0\0\xfe\xff": "UTF-32 text", b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text", b"PK\3\4": "a ZIP archive or an office document", b"%PDF-": "a PDF",
    b"BZh": "a bzip2 file", b"\xfd7zXZ\0": "an xz file", b"7z\xbc\xaf": "a 7-Zip archive", b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file", b"ARROW1": "an Arrow file", b"SQLite format 3\0": "a SQLite database",
    b"\x89PNG": "a PNG picture", b"\xff\xd8\xff": "a JPEG picture", b"GIF8": "a GIF picture",
    b"\x7fELF": "a program", b"\x89HDF": "an HDF5 file", b"\x93NUMPY": "a NumPy array",
}  # fmt: skip
_MAGIC = "*?["


class FileIdentity(NamedTuple):
    """What changes when a file may have changed, without reading it."""

    path: str
    size: int
    changed_ns: tuple[int, int]
    """Of its contents, which a copy may keep, and of anything about it, which nothing keeps."""
    inode: int


def identity_of(path: Path, what: str = "") -> FileIdentity:
    """Raises UserError for a file that is not there or that nobody may read; `what` it is, such as " a shard"."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot read{what}: {error.strerror}") from None
    return FileIdentity(str(path.absolute()), stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns), stat.st_ino)


def read_text(path: Path) -> str:
    """The text of a file, without its byte order mark, unpacked where it is gzip or Zstandard.

    Raises UserError for a file that cannot be read, and one that is no UTF-8 text, with what it is.
    """
    try:
        data = _unpacked(path, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from None
    kind = next((kind for start, kind in _NOT_TEXT.items() if data.startswith(start)), None) or _wide(data)
    if kind is not None:
        raise UserError(f"{path}: is {kind}: {_ALLOWED}")
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _unpacked(path: Path, data: bytes) -> bytes:
    try:
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if data.startswith(_ZSTD):
            from numcodecs import Zstd  # of zarr's; Python has its own from 3.14 on

            return bytes(Zstd().decode(data))
    except (OSError, EOFError, zlib.error, RuntimeError) as error:
        raise UserError(f"{path}: is damaged, or no gzip or Zstandard file: {error}") from None
    return data


def _wide(data: bytes) -> str | None:
    """UTF-16 and UTF-32 without a byte order mark: of Latin letters, half of the bytes or more are zero."""
    start = data[:65536]
    if start.count(0) * 4 <= len(start):
        return None
    return "UTF-16 or UTF-32 text without a byte order mark, or no text"


def find_files(pattern: str) -> tuple[list[Path], str]:
    """Regular files of a path, a glob (``**`` spans folders) or a folder (its texts at any depth), by path.

    Each file once, by what it is: under its shortest path, however many links lead to it. With them, what is wrong
    where there are none.
    """
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        texts = (".txt", ".txt.gz", ".txt.zst")
        found = [name for name in _glob(expanded, ["**"]) if name.endswith(texts)]
        why = f"{os.path.abspath(expanded)} holds no .txt file; name a glob for files called otherwise"
    elif os.path.isfile(expanded):
        return [Path(expanded)], ""  # a file whose name looks like a glob is meant as it stands
    elif os.path.islink(expanded) and not os.path.exists(expanded):
        return [], f"is a {what_it_is(expanded)}"
    elif os.path.exists(expanded):
        return [], "is no regular file, and documents are read more than once; save it to a file first"
    else:
        root, parts = os.path.splitdrive(expanded)
        is_absolute = parts.startswith(os.sep)
        found = list(_glob(root + os.sep if is_absolute else root, [p for p in parts.split(os.sep) if p]))
        allowed = "must be 'text:' and a file, a folder or a glob such as 'text:books/**/*.txt'"
        why = f"no file matches {os.path.abspath(expanded)}; {allowed}"
    return _each_once(found), why


def _each_once(names: Iterable[str]) -> list[Path]:
    files: dict[tuple[int, int], str] = {}
    for name in sorted(names, key=lambda name: (name.count(os.sep), name)):
        if os.path.isfile(name):
            stat = os.stat(name)
            files.setdefault((stat.st_dev, stat.st_ino), name)
    return sorted(map(Path, files.values()))


def _glob(folder: str, parts: list[str]) -> Iterator[str]:
    """Like ``glob.glob(..., recursive=True)``, which goes round in circles that links make; a folder once."""
    if not parts:
        yield folder
        return
    first, rest = parts[0], parts[1:]
    if first == "**":
        seen: set[str] = set()
        waiting = [folder]
        while waiting:
            inner = waiting.pop(0)
            if (real := os.path.realpath(inner)) in seen:
                continue
            seen.add(real)
            names = [name for name in _names(inner) if not name.startswith(".")]
            yield from _glob(inner, rest) if rest else (os.path.join(inner, name) for name in names)
            waiting += [path for name in names if os.path.isdir(path := os.path.join(inner, name))]
    elif any(character in first for character in _MAGIC):
        for name in _names(folder):
            if fnmatch.fnmatchcase(name, first) and (first.startswith(".") or not name.startswith(".")):
                yield from _glob(os.path.join(folder, name), rest)
    elif os.path.exists(path := os.path.join(folder, first)):
        yield from _glob(path, rest)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder or os.curdir))
    except OSError:
        return []
