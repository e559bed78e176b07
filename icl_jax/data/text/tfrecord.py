"""Reading TFRecord files without TensorFlow."""

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import google_crc32c

from icl_jax.config import UserError


def _masked_crc(data: bytes) -> int:
    """CRC-32C with the mask of the TFRecord format: rotated right by 15 bits, plus a constant."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _all_records(path: Path) -> Iterator[bytes]:
    """A record is its length (uint64), a checksum of that, the data, a checksum of that; all little-endian."""
    with open(path, "rb") as file:
        while header := file.read(12):
            length_ok = len(header) == 12 and _masked_crc(header[:8]) == struct.unpack("<I", header[8:])[0]
            if not length_ok:
                raise UserError(f"{path}: damaged TFRecord file (byte {file.tell() - len(header)})")
            (length,) = struct.unpack("<Q", header[:8])
            data, footer = file.read(length), file.read(4)
            if len(footer) != 4 or _masked_crc(data) != struct.unpack("<I", footer)[0]:
                raise UserError(f"{path}: damaged TFRecord file (byte {file.tell() - len(data) - len(footer)})")
            yield data


def read_records(path: Path, skip: int = 0, take: int = -1) -> Iterator[bytes]:
    """The records of a file after the first ``skip``, at most ``take`` of them (-1: all).

    Raises UserError if the file is damaged up to the last record read.
    """
    return islice(_all_records(path), skip, None if take < 0 else skip + take)
