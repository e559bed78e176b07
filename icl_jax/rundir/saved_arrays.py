"""Arrays of a checkpoint, read from where they lie in Orbax's files: each byte once, and without Orbax or JAX.

Orbax keeps a checkpoint in an OCDBT database: a B-tree, its nodes with checksums, whose leaves hold small values and
say of large ones in which file and from which byte on they are; TensorStore lists them. An array that one process wrote
is one value: its bytes in C order, then the index of a Zarr shard with one chunk. Arrays of another form (cut into
chunks for devices, compressed) are read by TensorStore. Nothing here says whether the bytes are those that were saved:
their hashes do.
"""

import io
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any
from urllib.parse import quote

import google_crc32c
import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.files import absolute, is_bucket, reason

_PIECE_BYTES = 2**20  # stays in a processor's cache from reading to hashing


@dataclass(frozen=True, slots=True)
class SavedArray:
    """An array on disk; with a member axis in front, ``array[k]`` is the member's part, on disk as well."""

    folder: epath.Path
    """Of the checkpoint."""
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    value: bytes | tuple[str, int] | None
    """The bytes, or their file and place in it, with the shard's index behind; None: in another form."""
    whole_bytes: int
    """Of the value, without the index."""
    first: int = 0
    """Where in it this part begins."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> "SavedArray | np.ndarray":
        if self.value is None:
            return np.asarray(self.read()[index])
        part = replace(self, shape=self.shape[1:])
        return replace(part, first=self.first + range(len(self))[index] * part.nbytes)

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, little-endian and in C order; each piece is good until the next. Raises UserError if damaged."""
        if self.value is None:
            yield np.ascontiguousarray(self.read()).reshape(-1).view(np.uint8).data
            return
        left, buffer = self.nbytes, memoryview(bytearray(min(self.nbytes, _PIECE_BYTES)))
        with self._opened(self.value) as file:
            while left:
                piece = buffer[:left]
                self._fill(file, piece)
                yield piece
                left -= len(piece)
            self._check_index(file)

    def read(self) -> np.ndarray:
        """The array in memory. Raises UserError if it is damaged."""
        if self.value is None:
            return self._read_chunks()
        array = np.empty(self.shape, self.dtype)
        with self._opened(self.value) as file:
            self._fill(file, array.reshape(-1).view(np.uint8).data)
            self._check_index(file)
        return array

    def _opened(self, value: bytes | tuple[str, int]) -> IO[bytes]:
        try:
            file, start = (io.BytesIO(value), 0) if isinstance(value, bytes) else self._open(*value)
            file.seek(start + self.first)
        except OSError as error:
            raise damaged(self.folder, f"{self.name}: {reason(error)}") from error
        return file

    def _open(self, name: str, start: int) -> tuple[IO[bytes], int]:
        return (self.folder / name).open("rb"), start

    def _fill(self, file: IO[bytes], buffer: memoryview) -> None:
        n = 0
        while n < len(buffer):
            try:
                n_read = file.readinto(buffer[n:])  # type: ignore[attr-defined]
            except OSError as error:
                raise damaged(self.folder, f"{self.name}: {reason(error)}") from error
            if not n_read:
                raise damaged(self.folder, f"{self.name}: its file ends too early")
            n += n_read

    def _check_index(self, file: IO[bytes]) -> None:
        index = memoryview(bytearray(len(_shard_index(self.whole_bytes))))
        file.seek(self.whole_bytes - self.first - self.nbytes, io.SEEK_CUR)
        self._fill(file, index)
        if index != _shard_index(self.whole_bytes):
            raise damaged(self.folder, f"{self.name}: the index of its shard has changed")

    def _read_chunks(self) -> np.ndarray:
        import tensorstore as ts

        store = {"driver": "ocdbt", "base": _base(self.folder), "path": f"{self.name}/"}
        try:
            return np.asarray(ts.open({"driver": "zarr3", "kvstore": store}, open=True).result().read().result())
        except Exception as error:  # TensorStore raises many types for a damaged file
            raise damaged(self.folder, f"{self.name}: {reason(error)}") from error


def open_arrays(path: epath.Path) -> dict[str, SavedArray]:
    """What a checkpoint holds, by the arrays' names; their bytes are read when they are asked for.

    Raises UserError if the folder is missing, or if what Orbax has written of its arrays is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: missing; the manifest or schedule says that it should be there")
    try:
        values = dict(_values(_base(path)))
        arrays = {
            name: _saved_array(path, name, values) for key in values if (name := key.removesuffix("/zarr.json")) != key
        }
    except UserError:
        raise
    except Exception as error:  # TensorStore raises many types for a damaged file
        raise damaged(path, reason(error)) from error
    listed = _listed(path)
    for name in sorted(listed ^ set(arrays)):
        raise damaged(path, f"{name}: {'has no data' if name in listed else 'is not in _METADATA'}")
    return arrays


def in_memory(array: np.ndarray | SavedArray) -> np.ndarray:
    """The array, read if it is on disk. Raises UserError if it is damaged."""
    return array.read() if isinstance(array, SavedArray) else np.asarray(array)


def damaged(path: epath.Path, what: str) -> UserError:
    """The error of a checkpoint that cannot be loaded."""
    return UserError(f"{path}: damaged, cannot be loaded: {what}")


def _base(path: epath.Path) -> str | dict[str, str]:
    """Where the database is, for TensorStore. Not as a URL: of a path it would take % and ? for something else."""
    where = f"{absolute(path)}/"
    return quote(where, safe="/:") if is_bucket(path) else {"driver": "file", "path": where}


def _values(base: str | dict[str, str]) -> Iterator[tuple[str, bytes | tuple[str, int, int]]]:
    """Each key of the database with its value, or its file, place and size."""
    import tensorstore as ts

    store = ts.KvStore.open(base).result()

    def under(node: str, prefix: bytes) -> Iterator[tuple[str, bytes | tuple[str, int, int]]]:
        for entry in ts.ocdbt.dump(store, node).result()["entries"]:
            if "location" in entry:
                yield from under(entry["location"], prefix + entry["subtree_common_prefix"])
            elif "inline_value" in entry:
                yield (prefix + entry["key"]).decode(), entry["inline_value"]
            else:
                yield (prefix + entry["key"]).decode(), _place(entry["indirect_value"])

    versions = ts.ocdbt.dump(store).result()["versions"]
    yield from under(versions[-1]["root"]["location"], b"")


def _place(location: str) -> tuple[str, int, int]:
    """File, place and size of ``value:FOLDER/:FILE:PLACE:SIZE``."""
    _, folder, rest = location.split(":", 2)
    file, start, size = rest.rsplit(":", 2)
    return folder + file, int(start), int(size)


def _saved_array(path: epath.Path, name: str, values: dict[str, bytes | tuple[str, int, int]]) -> SavedArray:
    import tensorstore as ts

    text = values[f"{name}/zarr.json"]
    if not isinstance(text, bytes):
        with (path / text[0]).open("rb") as file:
            file.seek(text[1])
            text = file.read(text[2])
    metadata = json.loads(text)
    shape, dtype = tuple(metadata["shape"]), ts.dtype(metadata["data_type"]).numpy_dtype
    n_bytes = math.prod(shape) * dtype.itemsize
    array = SavedArray(path, name, shape, dtype, None, n_bytes)
    if any(metadata.get(key) != value for key, value in _one_piece(list(shape)).items()):
        return array
    value = values.get("/".join([name, "c", *("0" for _ in shape)]))
    if value is None:
        raise damaged(path, f"{name}: has no data")
    if n_bytes + len(_shard_index(n_bytes)) != (len(value) if isinstance(value, bytes) else value[2]):
        raise damaged(path, f"{name}: its data are not of the size that its shape says")
    return replace(array, value=value if isinstance(value, bytes) else value[:2])


def _one_piece(shape: list[int]) -> dict[str, Any]:
    """What zarr.json says of an array that is one shard of one chunk, as it is."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {"chunk_shape": shape, "codecs": [little], "index_codecs": [little, {"name": "crc32c"}]}
    return {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }


def _shard_index(n_bytes: int) -> bytes:
    """That of a shard of one chunk: where the chunk begins, its size, and the CRC-32C of the two."""
    index = struct.pack("<QQ", 0, n_bytes)
    return index + struct.pack("<I", int(google_crc32c.value(index)))


def _listed(path: epath.Path) -> set[str]:
    """The arrays that Orbax names. It reads these files when a run goes on, so that they must be whole."""
    others = [path / "_sharding", *(path / "array_metadatas").glob("process_*")]
    names: set[str] = set()
    for file in [path / "_METADATA", *(other for other in others if other.exists())]:
        try:
            content = json.loads(file.read_bytes())
            if file.name == "_METADATA":
                names = {entry["key_metadata"][0]["key"] for entry in content["tree_metadata"].values()}
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise damaged(path, f"{file.name}: {reason(error)}") from error
    return names
