"""The training state as a flat dict of named arrays, and back: what state/STEP holds."""

from typing import Any

import jax
import numpy as np

from icl_jax.config import UserError
from icl_jax.train.step import TrainState


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def state_to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    """Names such as ``params.W_E`` and ``opt_state.0.mu.W_E``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def state_from_arrays(arrays: dict[str, np.ndarray], like: TrainState) -> TrainState:
    """Rebuild a state with the structure of `like`. Raises UserError where a name or a shape does not fit."""

    def take(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        name = _name(path)
        if name not in arrays:
            raise UserError(f"saved state: {name} is missing; the config says that it should be there")
        value = arrays[name]
        if value.shape != leaf.shape or value.dtype != leaf.dtype:
            found, expected = f"{value.dtype}{list(value.shape)}", f"{leaf.dtype}{list(leaf.shape)}"
            raise UserError(f"saved state: {name} = {found}: the config says {expected}")
        return value

    return jax.tree_util.tree_map_with_path(take, like)
