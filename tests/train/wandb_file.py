"""Read a ``.wandb`` file, W&B's transaction log, without W&B's own reader.

A header of 7 bytes, then LevelDB log blocks of 32 KiB. A block holds chunks: CRC-32 (4 bytes), length (2),
type (1), data; fewer than 7 bytes left at a block's end are padding. A record is one FULL chunk or a FIRST, any
MIDDLE and a LAST, each in a block of its own. The first block's space includes the header. The checksum is plain
CRC-32 over type and data, not LevelDB's masked CRC-32C.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_HEADER = struct.Struct("<4sHB")
_CHUNK = struct.Struct("<IHB")
_BLOCK_SIZE = 32 * 1024
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Every record in order. Raises ValueError for a file that breaks the format above."""
    data = path.read_bytes()
    magic, _, _ = _HEADER.unpack_from(data)
    if magic != b":W&B":
        raise ValueError(f"{magic=}, not a .wandb file")
    at = _HEADER.size
    parts: list[bytes] = []
    while at < len(data):
        left = _BLOCK_SIZE - at % _BLOCK_SIZE
        if left < _CHUNK.size:
            at += left
            continue
        crc, length, kind = _CHUNK.unpack_from(data, at)
        body = data[at + _CHUNK.size : at + _CHUNK.size + length]
        if len(body) != length or length > left - _CHUNK.size:
            raise ValueError(f"chunk at {at} of {length} bytes does not fit")
        if zlib.crc32(bytes([kind]) + body) != crc:
            raise ValueError(f"chunk at {at}: wrong checksum")
        if kind not in ((_FULL, _FIRST) if not parts else (_MIDDLE, _LAST)):
            raise ValueError(f"chunk at {at}: {kind=} after {len(parts)} parts of a record")
        parts.append(body)
        at += _CHUNK.size + length
        if kind in (_FULL, _LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            yield record
            parts = []
    if parts:
        raise ValueError("the last record is cut off")


def read_items(items: Any) -> dict[str, Any]:
    """Protobuf items of a history, summary or config record as a dict; nested keys are joined by a slash and a dot."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}
