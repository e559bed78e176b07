"""Where the ICL score falls fastest: the rule that stands for the paper's band, with its uncertainty.

The windowed ICL score is interpolated to an even grid in tokens (snapshots are not evenly spaced), the rule of
`icl_jax.maths.steepest_fall` finds the stretch, and its ends are widened to the nearest snapshots outside. The
interval comes from 200 bootstrap samples of the held-out rows: 5 % to 95 %.

Any curve that falls has such a stretch, with or without a change: whether there is one is for `phase_change` to say.
steepest_drop is the score's change within; steepest_share its part of the whole run's change (paper: more than 0.75 in
models with two layers and more). Source: Olsson et al. 2022, Argument 1 and Model Details; rule, grid and interval are
ours.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.maths.steepest_fall import steepest_fall
from icl_jax.measures.measurement import Context, Derived, Variable
from icl_jax.measures.phase_change import snapshots_around

_N_GRID = 101
_N_SAMPLES = 200
_INTERVAL = (5, 95)


def window_in_tokens(tokens: Real[np.ndarray, " S"], icl: Float[np.ndarray, " S"]) -> tuple[float, float]:
    """Start and end of the steepest fall in tokens. Needs three snapshots or more."""
    grid = np.linspace(tokens[0], tokens[-1], _N_GRID)
    found = steepest_fall(grid, np.interp(grid, tokens, icl))
    return float(grid[found.start]), float(grid[found.end])


def bootstrap_windows(
    tokens: Real[np.ndarray, " S"], row_icl: Float[np.ndarray, "S row"], seed: int, n_samples: int = _N_SAMPLES
) -> Float[np.ndarray, "sample 2"]:
    """Windows of resampled held-out rows, in tokens of the snapshots at their ends."""
    rng = np.random.default_rng([seed, 2])
    n_rows = row_icl.shape[1]
    weights = rng.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=n_samples) / n_rows
    windows = [window_in_tokens(tokens, icl) for icl in weights @ row_icl.T.astype(np.float64)]
    return np.array([tokens[list(snapshots_around(tokens, *window))] for window in windows], np.float64)


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    steps, tokens = dataset["snapshot"].values, dataset["tokens"].values
    icl = dataset["icl_windowed"].values.astype(np.float64)
    if len(tokens) < 3:
        # Two snapshots are before and after, whatever lies between.
        start, end = 0, len(tokens) - 1
        low_high = np.full((2, 2), np.nan)
    else:
        start, end = snapshots_around(tokens, *window_in_tokens(tokens, icl))
        samples = bootstrap_windows(tokens, dataset["row_icl"].values, context.seed)
        low_high = np.percentile(samples, _INTERVAL, axis=0)
    drop, whole = icl[end] - icl[start], icl[-1] - icl[0]
    return {
        "steepest_start": np.asarray(steps[start]),
        "steepest_end": np.asarray(steps[end]),
        "steepest_start_tokens": np.asarray(tokens[start]),
        "steepest_end_tokens": np.asarray(tokens[end]),
        "steepest_start_interval": low_high[:, 0],
        "steepest_end_interval": low_high[:, 1],
        "steepest_drop": np.asarray(drop),
        "steepest_share": np.asarray(drop / whole if whole else np.nan),
    }


_FEW = "a window takes three snapshots or more"

DERIVED = Derived(
    name="steepest_fall",
    source="Olsson et al. 2022, Argument 1; rule ours",
    needs=("icl_windowed", "row_icl"),
    variables={
        "steepest_start": Variable((), "1", "step of the last snapshot before the steepest fall"),
        "steepest_end": Variable((), "1", "step of the first snapshot after it"),
        "steepest_start_tokens": Variable((), "1", "training tokens at steepest_start"),
        "steepest_end_tokens": Variable((), "1", "training tokens at steepest_end"),
        "steepest_start_interval": Variable(
            ("bound",), "1", "90 % interval of the start in tokens, over held-out rows", _FEW
        ),
        "steepest_end_interval": Variable(
            ("bound",), "1", "90 % interval of the end in tokens, over held-out rows", _FEW
        ),
        "steepest_drop": Variable((), "nats", "change of icl_windowed within the window; negative: it fell"),
        "steepest_share": Variable((), "1", "steepest_drop as a part of the whole run's change", "no change at all"),
    },
    derive=derive,
)
