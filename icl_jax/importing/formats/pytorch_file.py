"""Files of `torch.save` (.bin, .pt, .pth), read without PyTorch and without running anything.

A pickle is a program. Of what it may call, only the making of tensors and of dicts is known here; anything else is
refused, and nothing that it names is ever imported.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from icl_jax.config import UserError
from icl_jax.importing.formats.tensor import Tensor, Tensors
from icl_jax.rundir.files import reason

_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


def load_pytorch(path: Path) -> Tensors:
    """Every tensor of a file, by its name; of nested dicts with dots between.

    Raises UserError for a file that is damaged, of PyTorch before 1.6, or whose pickle asks for anything to be called
    but what makes tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = next((name for name in names if name.endswith("/data.pkl")), None)
            if pickled is None:
                raise UserError(f"{path}: not a file of torch.save: it has no data.pkl")
            root = pickled.removesuffix("data.pkl")
            order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
            if order.strip() != b"little":
                raise UserError(f"{path}: byteorder {order!r}: must be little")
            with archive.open(pickled) as stream:
                loaded = _Unpickler(stream, path, root).load()
    except zipfile.BadZipFile:
        what = "damaged, or of torch.save before PyTorch 1.6, which is not read: save it again with a newer one"
        raise UserError(f"{path}: {what}") from None
    except UserError:
        raise
    except Exception as error:  # a pickle that is damaged raises anything
        raise UserError(f"{path}: damaged, cannot be read: {reason(error)}") from None
    return _named(loaded, path)


def _named(loaded: Any, path: Path, prefix: str = "") -> Tensors:
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds {type(loaded).__name__}: must be a dict of tensors")
    found: Tensors = {}
    for name, value in loaded.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            found |= _named(value, path, f"{prefix}{name}.")
    return found


class _Unpickler(pickle.Unpickler):
    """Gives `Tensor`s for PyTorch's tensors."""

    def __init__(self, stream: Any, path: Path, root: str) -> None:
        super().__init__(stream)
        self._path, self._root = path, root

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch", "Size"): lambda sizes=(): tuple(sizes),
        }
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if (module, name) not in known:
            refused = f"its pickle asks to call {module}.{name}, which is refused: it could run any code"
            raise UserError(f"{self._path}: {refused}; must hold tensors alone, or be converted to safetensors")
        return known[module, name]

    def persistent_load(self, pid: Any) -> tuple[np.dtype, str, int]:
        kind, dtype, key, _location, n = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or not str(key).isalnum():
            raise UserError(f"{self._path}: refers to {kind!r}: must be a storage")
        return dtype, str(key), int(n)

    def _tensor(self, storage: tuple[np.dtype, str, int], offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
        dtype, key, n = storage
        shape, strides = tuple(int(size) for size in shape), tuple(int(stride) for stride in strides)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        is_within = offset >= 0 and min((*shape, *strides), default=0) >= 0 and (math.prod(shape) == 0 or last < n)
        if not is_within:
            raise UserError(f"{self._path}: damaged: a tensor of shape {list(shape)} lies outside of its storage")

        def read() -> np.ndarray:
            member = f"{self._root}data/{key}"
            try:
                with zipfile.ZipFile(self._path) as archive:
                    flat = np.frombuffer(archive.read(member), dtype)
                if len(flat) < n:
                    raise ValueError(f"{member} holds {len(flat)} numbers, not {n}")
                steps = tuple(stride * dtype.itemsize for stride in strides)
                return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat[offset:], shape, steps))
            except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
                raise UserError(f"{self._path}: damaged, cannot be read: {reason(error)}") from None

        return Tensor(shape, dtype, read)
