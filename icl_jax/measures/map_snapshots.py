"""A function of one snapshot's parameters, over all snapshots: one compilation, a snapshot on each device."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.measures.measurement import StackedParams
from icl_jax.model.params import Params
from icl_jax.model.precision import exact_products


def local_devices() -> list[jax.Device]:
    """The devices that snapshots are spread over."""
    return jax.local_devices()


def as_jax(params: Params | dict[str, np.ndarray]) -> Params:
    """Parameters as JAX arrays, from a snapshot's NumPy arrays or from JAX arrays, traced or not."""
    return {name: jnp.asarray(value) for name, value in params.items()}


@lru_cache(maxsize=128)
def _compiled(fn: Callable[..., Any], config: ModelConfig, n_devices: int, n_shared: int) -> Callable[..., Any]:
    # No collectives: the devices go through their snapshots side by side and cannot wait for each other.
    return jax.pmap(
        exact_products(partial(fn, config)), in_axes=(0, *[None] * n_shared), devices=local_devices()[:n_devices]
    )


def map_snapshots(
    fn: Callable[..., Any], config: ModelConfig, params: StackedParams, *shared: np.ndarray
) -> dict[str, np.ndarray]:
    """`fn(config, params of one snapshot, *shared)` -> dict of arrays, for each snapshot; stacked on the first axis.

    `fn` must be a module-level function, so that its compiled form is found again at the next batch of snapshots.
    """
    n_snapshots = len(next(iter(params.values())))
    n_devices = min(len(local_devices()), n_snapshots)
    compiled = _compiled(fn, config, n_devices, len(shared))
    parts = []
    for start in range(0, n_snapshots, n_devices):
        # The last group is filled up with its last snapshot.
        take = np.minimum(np.arange(start, start + n_devices), n_snapshots - 1)
        parts.append(jax.device_get(compiled({name: value[take] for name, value in params.items()}, *shared)))
    return {name: np.concatenate([part[name] for part in parts])[:n_snapshots] for name in parts[0]}
