"""Numbers for the page: typed arrays in base64, each kept once however many charts use it."""

import base64

import numpy as np


class ArrayStore:
    """Little-endian arrays by index; equal ones share an index."""

    def __init__(self) -> None:
        self._index: dict[tuple[str, bytes], int] = {}
        self.arrays: list[dict[str, str]] = []
        """Type ("f4" or "u1") and base64 of each."""

    def put(self, values: np.ndarray) -> int:
        """Index of the values: bytes as they are, all else as float32."""
        kind = "u1" if values.dtype == np.uint8 else "f4"
        raw = np.ascontiguousarray(values, dtype=np.uint8 if kind == "u1" else "<f4").tobytes()
        key = (kind, raw)
        if key not in self._index:
            self._index[key] = len(self.arrays)
            self.arrays.append({"type": kind, "base64": base64.b64encode(raw).decode("ascii")})
        return self._index[key]


def read_array(entry: dict[str, str]) -> np.ndarray:
    """What `ArrayStore.put` kept, flat."""
    return np.frombuffer(base64.b64decode(entry["base64"]), "<f4" if entry["type"] == "f4" else np.uint8)
