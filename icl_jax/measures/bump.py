"""The bump: where the loss curve is not convex.

A learning curve's slope flattens all the way; models that grow induction heads have one stretch where it gets steeper.
The loss (mean over single held-out tokens, one vector of the same tokens at each snapshot) is interpolated to an even
grid in tokens from the end of warm-up on, and smoothed over five points.

- loss_bend: second difference ``L[i+1] - 2 L[i] + L[i-1]`` on that grid, nats; negative where the curve bends down.
- bump_height: largest height of the curve above its convex hull from below, nats; 0 or more, exactly 0 for a convex
  curve. It needs no tolerance for noise, where the sign of a second difference does.
- bump_tokens: where that is.

Source: Olsson et al. 2022, Argument 1 ("the only place in training where the loss is not convex") and the Model
Analysis Table; grid and height are ours.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.maths.steepest_fall import smooth
from icl_jax.measures.measurement import Context, Derived, UndefinedError, Variable

_N_GRID = 51
_SMOOTHING = 5


def convex_hull_below(x: Float[np.ndarray, " G"], y: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
    """The largest convex function that is nowhere above the points, at each of them; x must increase."""
    hull: list[int] = []
    for i in range(len(x)):
        # The last point of the hull goes if it is not below the line from the one before it to this one.
        while len(hull) > 1 and _is_above(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return np.interp(x, x[hull], y[hull])


def _is_above(x: np.ndarray, y: np.ndarray, a: int, b: int, c: int) -> bool:
    """Point b is on or above the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))


def bump(
    tokens: Real[np.ndarray, " S"], loss: Float[np.ndarray, " S"], first_tokens: float = 0
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"], float, float]:
    """Grid in tokens, second difference on it (0 at its ends), height of the bump in nats and where it is.

    Only tokens from `first_tokens` on count: while the learning rate warms up every loss curve bends down.
    """
    grid = np.linspace(max(first_tokens, tokens[0]), tokens[-1], _N_GRID)
    curve = smooth(np.interp(grid, tokens, loss), _SMOOTHING, is_symmetric=True)
    bend = np.zeros(_N_GRID)
    bend[1:-1] = np.diff(curve, n=2)
    height = curve - convex_hull_below(grid, curve)
    return grid, bend, float(height.max()), float(grid[np.argmax(height)])


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    config = context.config
    tokens = dataset["tokens"].values.astype(np.float64)
    if len(tokens) < 3:
        raise UndefinedError(f"a curve takes three snapshots or more, not {len(tokens)}")
    curve = dataset["token_loss"].values.mean(axis=1, dtype=np.float64)
    # Warm-up is over; in a run that is hardly longer all of it counts.
    first = min(config.optimizer.warmup_steps * config.tokens_per_step, tokens[-1] / 2)
    grid, bend, height, where = bump(tokens, curve, first)
    return {
        "loss_curve": curve.astype(np.float32),
        "bend_tokens": grid,
        "loss_bend": bend.astype(np.float32),
        "bump_height": np.asarray(height),
        "bump_tokens": np.asarray(where),
    }


DERIVED = Derived(
    name="bump",
    source="Olsson et al. 2022, Argument 1",
    needs=("token_loss",),
    variables={
        "loss_curve": Variable(("snapshot",), "nats", "mean loss of single held-out tokens"),
        "bend_tokens": Variable(("grid",), "1", "training tokens at the points of loss_bend"),
        "loss_bend": Variable(("grid",), "nats", "second difference of the smoothed loss; negative: it bends down"),
        "bump_height": Variable((), "nats", "height of the loss above its convex hull after warm-up; 0: no bump"),
        "bump_tokens": Variable((), "1", "training tokens where it is highest"),
    },
    derive=derive,
)
