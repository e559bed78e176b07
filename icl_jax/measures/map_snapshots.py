"""A function of one snapshot's parameters, over all snapshots: one compilation, a snapshot on each device."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.model.precision import exact_products
from icl_jax.process import jax_use

StackedParams = dict[str, np.ndarray]
"""Parameters of several snapshots, the snapshot axis in front of every array."""


def local_devices() -> list[jax.Device]:
    """The devices that snapshots are spread over."""
    return jax.local_devices()


@lru_cache(maxsize=128)
def _compiled(fn: Callable[..., Any], config: ModelConfig, n_devices: int, n_shared: int) -> Callable[..., Any]:
    # No collectives: the devices go through their snapshots side by side and cannot wait for each other.
    return jax.pmap(
        exact_products(partial(fn, config=config)), in_axes=(0, *[None] * n_shared), devices=local_devices()[:n_devices]
    )


def map_snapshots(fn: Callable[..., Any], params: StackedParams, *shared: Any, config: ModelConfig) -> dict[str, Any]:
    """`fn(params of one snapshot, *shared, config=config)` -> dict of arrays, of each snapshot; stacked in front.

    `fn` must be the same object each time, so that its compiled form is found again at the next batch of snapshots.
    """
    jax_use.note()
    n_snapshots = len(next(iter(params.values())))
    n_devices = min(len(local_devices()), n_snapshots)
    compiled = _compiled(fn, config, n_devices, len(shared))
    parts = []
    for start in range(0, n_snapshots, n_devices):
        # The last group is filled up with its last snapshot.
        take = np.minimum(np.arange(start, start + n_devices), n_snapshots - 1)
        # A large snapshot, alone, is not copied.
        some = params if n_snapshots == n_devices else {name: value[take] for name, value in params.items()}
        parts.append(jax.device_get(compiled(some, *shared)))
    return dict(jax.tree.map(lambda *found: np.concatenate(found)[:n_snapshots], *parts))
