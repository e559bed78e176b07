"""Files of the `safetensors` library, which checks their headers."""

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

    def reading(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            try:
                with safe_open(path, framework="numpy") as file:
                    return np.asarray(file.get_tensor(name))
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: damaged, cannot be read: {reason(error)}") from None

        return read

    found: Tensors = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in list(file.keys()):
                part = file.get_slice(name)
                kind = part.get_dtype()
                dtype = (_DTYPES | _OTHERS).get(kind)
                if dtype is None:
                    raise UserError(f"{path}: {name} is of the type {kind}: must be one of {', '.join(_DTYPES)}")
                found[name] = Tensor(tuple(part.get_shape()), np.dtype(dtype), reading(name))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file, or damaged: {reason(error)}") from None
    return found
