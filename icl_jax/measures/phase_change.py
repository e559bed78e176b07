"""Where in training the ICL score falls: the phase change of a run, with its uncertainty.

The windowed ICL score is interpolated to an even grid in tokens (snapshots are not evenly spaced), the rule of
`icl_jax.maths.steepest_fall` finds the stretch, and its ends are widened to the nearest snapshots outside. The
interval comes from 200 bootstrap samples of the held-out rows: 5 % to 95 %.

phase_drop is the score's change within the window; phase_share the part of the whole run's change (paper: more than
0.75 in models with two layers and more). A curve that hardly falls has a window too: look at phase_drop.
Source: Olsson et al. 2022, Argument 1 and Model Details; rule, grid and interval are ours.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.maths.steepest_fall import phase_change
from icl_jax.measures.measurement import Context, Derived, Variable

_N_GRID = 101
_N_SAMPLES = 200
_INTERVAL = (5, 95)


def window_in_tokens(tokens: Real[np.ndarray, " S"], icl: Float[np.ndarray, " S"]) -> tuple[float, float]:
    """Start and end of the phase change in tokens. Needs three snapshots or more."""
    grid = np.linspace(tokens[0], tokens[-1], _N_GRID)
    found = phase_change(grid, np.interp(grid, tokens, icl))
    return float(grid[found.start]), float(grid[found.end])


def window_snapshots(tokens: Real[np.ndarray, " S"], start: float, end: float) -> tuple[int, int]:
    """Indexes of the last snapshot up to the start and of the first from the end on."""
    first = int(np.searchsorted(tokens, start, side="right")) - 1
    last = int(np.searchsorted(tokens, end, side="left"))
    return max(first, 0), min(last, len(tokens) - 1)


def bootstrap_windows(
    tokens: Real[np.ndarray, " S"], row_icl: Float[np.ndarray, "S row"], seed: int, n_samples: int = _N_SAMPLES
) -> Float[np.ndarray, "sample 2"]:
    """Windows of resampled held-out rows, in tokens of the snapshots at their ends."""
    rng = np.random.default_rng([seed, 2])
    n_rows = row_icl.shape[1]
    weights = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=n_samples) / n_rows
    windows = [window_in_tokens(tokens, icl) for icl in weights @ row_icl.T.astype(np.float64)]
    return np.array([tokens[list(window_snapshots(tokens, *window))] for window in windows], np.float64)


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    steps, tokens = dataset["snapshot"].values, dataset["tokens"].values
    icl = dataset["icl_windowed"].values.astype(np.float64)
    if len(tokens) < 3:
        # Two snapshots are before and after, whatever lies between.
        start, end = 0, len(tokens) - 1
        low_high = np.full((2, 2), np.nan)
    else:
        start, end = window_snapshots(tokens, *window_in_tokens(tokens, icl))
        samples = bootstrap_windows(tokens, dataset["row_icl"].values, context.seed)
        low_high = np.percentile(samples, _INTERVAL, axis=0)
    drop, whole = icl[end] - icl[start], icl[-1] - icl[0]
    return {
        "phase_start": np.asarray(steps[start]),
        "phase_end": np.asarray(steps[end]),
        "phase_start_tokens": np.asarray(tokens[start]),
        "phase_end_tokens": np.asarray(tokens[end]),
        "phase_start_interval": low_high[:, 0],
        "phase_end_interval": low_high[:, 1],
        "phase_drop": np.asarray(drop),
        "phase_share": np.asarray(drop / whole if whole else np.nan),
    }


_FEW = "a window takes three snapshots or more"

DERIVED = Derived(
    name="phase_change",
    source="Olsson et al. 2022, Argument 1; rule ours",
    needs=("icl_windowed", "row_icl"),
    variables={
        "phase_start": Variable((), "1", "step of the last snapshot before the phase change"),
        "phase_end": Variable((), "1", "step of the first snapshot after it"),
        "phase_start_tokens": Variable((), "1", "training tokens at phase_start"),
        "phase_end_tokens": Variable((), "1", "training tokens at phase_end"),
        "phase_start_interval": Variable(
            ("bound",), "1", "90 % interval of the start in tokens, over held-out rows", _FEW
        ),
        "phase_end_interval": Variable(("bound",), "1", "90 % interval of the end in tokens, over held-out rows", _FEW),
        "phase_drop": Variable((), "nats", "change of icl_windowed within the window; negative: it formed there"),
        "phase_share": Variable((), "1", "phase_drop as a part of the whole run's change", "no change at all"),
    },
    derive=derive,
)
