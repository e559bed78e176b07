"""Principal components of the per-token loss vectors of all snapshots, of one run or of several together.

Rows: the token losses of each snapshot; columns are centred and not scaled; the first two components of the singular
value decomposition are kept. The sign of a component is free: here the first falls from the first snapshot of the
first run to its last, and the second is 0 or more at that first snapshot.

- pca_score: coordinates of the snapshots, nats (a length in the space of all tokens' losses).
- pca_explained: share of the variance, [0, 1].
- pca_turn: angle in radians, [0, pi], between the steps before and after each snapshot in the plane of the two, taken
  on an even grid in tokens; a model with the phase change turns there, a one-layer model does not.

Source: Olsson et al. 2022, Model Analysis Table, "Principal component analysis of token losses"; the angle is ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float

from icl_jax.measures.measurement import Context, Derived, UndefinedError, Variable

_N_GRID = 26


class Pca(NamedTuple):
    """Components of one or several runs."""

    scores: list[Float[np.ndarray, "S component"]]
    """Of each run's snapshots."""
    explained: Float[np.ndarray, " component"]
    directions: Float[np.ndarray, "component token"]
    """Unit vectors."""
    mean: Float[np.ndarray, " token"]


def pca(runs: Sequence[Float[np.ndarray, "_ token"]], n_components: int = 2) -> Pca:
    """Components of the stacked vectors of all runs; their tokens must be the same ones."""
    stacked = np.concatenate([np.asarray(run, np.float64) for run in runs])
    mean = stacked.mean(axis=0)
    n_components = min(n_components, *stacked.shape)
    centred = stacked - mean
    # Snapshots are few, tokens many: the products of snapshots have the same components, a hundred times as fast.
    values, left = np.linalg.eigh(centred @ centred.T)
    singular = np.sqrt(np.maximum(values[::-1], 0))
    left = left[:, ::-1]
    scores = (left * singular)[:, :n_components]
    right = (left.T[:n_components] @ centred) / np.maximum(singular[:n_components, None], np.finfo(np.float64).tiny)
    n_first = len(runs[0])
    for i in range(n_components):
        is_wrong = scores[n_first - 1, 0] > scores[0, 0] if i == 0 else scores[0, i] < 0
        if is_wrong:
            scores[:, i] *= -1
            right[i] *= -1
    total = float(np.sum(singular**2))
    explained = singular**2 / total if total else np.zeros_like(singular)
    bounds = np.cumsum([len(run) for run in runs])[:-1]
    return Pca(np.split(scores[:, :n_components], bounds), explained[:n_components], right[:n_components], mean)


def turning_angles(points: Float[np.ndarray, "G 2"]) -> Float[np.ndarray, " G"]:
    """Angle between the steps into and out of each point, radians in [0, pi]; 0 at both ends."""
    steps = np.diff(points, axis=0)
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    turn = np.abs((np.diff(heading) + np.pi) % (2 * np.pi) - np.pi)
    return np.concatenate([[0.0], turn, [0.0]])


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    tokens = dataset["tokens"].values.astype(np.float64)
    if len(tokens) < 3:
        raise UndefinedError(f"two components take three snapshots or more, not {len(tokens)}")
    found = pca([dataset["token_loss"].values])
    (scores,) = found.scores
    grid = np.linspace(tokens[0], tokens[-1], _N_GRID)
    path = np.stack([np.interp(grid, tokens, scores[:, i]) for i in range(2)], axis=1)
    return {
        "pca_score": scores.astype(np.float32),
        "pca_explained": found.explained.astype(np.float32),
        "pca_direction": found.directions.astype(np.float32),
        "pca_turn_tokens": grid,
        "pca_turn": turning_angles(path).astype(np.float32),
    }


DERIVED = Derived(
    name="pca",
    source="Olsson et al. 2022, Model Analysis Table",
    needs=("token_loss",),
    variables={
        "pca_score": Variable(
            ("snapshot", "component"), "nats", "coordinates of the token-loss vector of each snapshot"
        ),
        "pca_explained": Variable(("component",), "1", "share of the variance over snapshots; [0, 1]"),
        "pca_direction": Variable(("component", "token"), "1", "unit vectors of the components"),
        "pca_turn_tokens": Variable(("turn",), "1", "training tokens at the points of pca_turn"),
        "pca_turn": Variable(("turn",), "rad", "angle by which the path of the two components turns; [0, pi]"),
    },
    derive=derive,
)
