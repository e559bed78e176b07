"""Files of the `safetensors` library, which checks their headers. Numbers are read past it: it copies them twice."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from icl_jax.config import UserError
from icl_jax.importing.formats.tensor import Tensor, Tensors
from icl_jax.rundir.files import reason

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_OTHERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}


def load_safetensors(path: Path) -> Tensors:
    """Every tensor of a file. Raises UserError if it is damaged or holds a type that is not represented."""

    def reading(name: str, shape: tuple[int, ...], dtype: np.dtype) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                return np.fromfile(path, dtype, math.prod(shape), offset=places[name]).reshape(shape)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: damaged, cannot be read: {reason(error)}") from None

        return read

    found: Tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            places = _places(path)
            for name in list(file.keys()):
                part = file.get_slice(name)
                kind = part.get_dtype()
                dtype = (_DTYPES | _OTHERS).get(kind)
                if dtype is None:
                    raise UserError(f"{path}: {name} is of the type {kind}: must be one of {', '.join(_DTYPES)}")
                shape = tuple(part.get_shape())
                found[name] = Tensor(shape, np.dtype(dtype), reading(name, shape, np.dtype(dtype)))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or damaged: {reason(error)}") from None
    return found


def _places(path: Path) -> dict[str, int]:
    """Where in the file each tensor begins. Its header has been checked."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(n_header))
    return {name: 8 + n_header + at["data_offsets"][0] for name, at in header.items() if name != "__metadata__"}
