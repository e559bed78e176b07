"""The training state as a flat dict of named arrays, and back: what state/STEP holds."""

from collections.abc import Mapping
from typing import Any

import jax

from icl_jax.train.step import TrainState


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def state_to_arrays(state: TrainState) -> dict[str, Any]:
    """Names such as ``params.W_E`` and ``opt_state.0.mu.W_E``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_name(path): leaf for path, leaf in leaves}


def state_from_arrays(arrays: Mapping[str, Any], like: TrainState) -> TrainState:
    """Rebuild a state with the structure of `like`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], like)
