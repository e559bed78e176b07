"""The curves of training in which changes are looked for: at the record's live probes where those are more than the
snapshots, else at the snapshots. Each gives its tokens and its values, with the axis of training in front.
"""

from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.measures.measurement import Recorded

SCORES = {
    "prefix_matching": "prefix matching",
    "previous_token": "attention one back",
    "copying_eigenvalue": "copying",
}
"""The scores of heads, in words; probes hold the first two."""


def best_head_of(scores: Float[np.ndarray, "layer head"]) -> tuple[int, int]:
    """Layer and number of the highest."""
    layer, head = np.unravel_index(np.nanargmax(scores), scores.shape)
    return int(layer), int(head)


class Curve(NamedTuple):
    """Of one measure, or of every head."""

    tokens: Real[np.ndarray, " S"]
    values: Float[np.ndarray, "S ..."]


def icl_curve(recorded: Recorded | None, dataset: xr.Dataset) -> Curve:
    """Windowed ICL score, nats."""
    return _denser(recorded, None if recorded is None else recorded.probe_icl, dataset, dataset["icl_windowed"])


def loss_curve(recorded: Recorded | None, dataset: xr.Dataset) -> Curve:
    """Mean loss of held-out tokens, nats."""
    at_snapshots = dataset["loss_by_position"].mean("position", dtype=np.float64)
    return _denser(recorded, None if recorded is None else recorded.probe_loss, dataset, at_snapshots)


def head_curves(recorded: Recorded | None, dataset: xr.Dataset, score: str) -> Curve:
    """One of `SCORES` of every head, [S, layer, head]."""
    at_probes = None if recorded is None else recorded.probe_heads.get(score)
    return _denser(recorded, at_probes, dataset, dataset[score])


def _denser(
    recorded: Recorded | None, at_probes: np.ndarray | None, dataset: xr.Dataset, at_snapshots: xr.DataArray
) -> Curve:
    tokens, values = dataset["tokens"].values, at_snapshots.values
    if recorded is not None and at_probes is not None and len(recorded.probe_tokens) > len(tokens):
        tokens, values = recorded.probe_tokens, at_probes
    return Curve(tokens, values.astype(np.float64))
