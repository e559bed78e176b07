"""Whether in-context learning forms abruptly, where and how much: the phase change of a run.

The detector of `icl_jax.maths.change_point`, whose null hypothesis is a smooth learning curve under the run's learning
rate, on the windowed ICL score: at the live probes of the record where there are more of them than snapshots, else at
the snapshots. A change counts from 15 % of what the score does in the run, twice its noise and 0.01 nats on, and where
the held-out rows agree: what they share at all snapshots is no noise from point to point. Up to four are told apart, in
the order of training.

`step_before` and `step_after` are the snapshots that everything else compares: where 1 % of the largest change is done
at most, and 99 % at least; without one, at a tenth of the run and at its end. Calibration: docs/change-point.md.

Source: ours, in place of the band of Olsson et al. 2022, Argument 1. `steepest_fall` is like that one, and finds a
stretch in any curve.
"""

from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.maths.change_point import Change
from icl_jax.maths.finding import MOST_CHANGES, Finding, arrays_of, find_changes, finding_from
from icl_jax.measures.curves import icl_curve
from icl_jax.measures.measurement import Context, Derived, Variable

_OVER_ROWS = 3.0
"""Standard errors over rows that the score has to fall by between the snapshots around a change. Two are passed by
chance, for a change may be anywhere; those of our runs that the eye sees have six and more."""
_FEWER = f"fewer than {MOST_CHANGES} changes"
_TEXTS = {
    "start": ("1", "training tokens at which a tenth of it is done"),
    "end": ("1", "training tokens at which nine tenths are done; inf: still going on where the run ends"),
    "size": ("{unit}", "what it does to the curve"),
    "share": ("1", "size as a part of the whole run's change"),
    "width": ("1", "training tokens from start to end; inf: still going on"),
}


def change_variables(prefix: str, dims: tuple[str, ...], unit: str, of: str) -> dict[str, Variable]:
    """The variables of a finding for each curve along `dims`: `prefix`_status, ..._p, ..._start and so on."""
    words = "found, still going on, none or too few points"
    few = "fewer than eight points"
    found = {
        f"{prefix}_status": Variable(dims, "1", f"of {of}: {words}"),
        f"{prefix}_p": Variable(dims, "1", f"p-value of {of} being smooth throughout", few),
    }
    for name, (units, text) in _TEXTS.items():
        missing = f"{_FEWER}, or still going on" if name in ("end", "width") else _FEWER
        found[f"{prefix}_{name}"] = Variable((*dims, "change"), units.format(unit=unit), text, missing)
        found[f"{prefix}_{name}_interval"] = Variable(
            (*dims, "change", "bound"), units.format(unit=unit), f"90 % interval of {prefix}_{name}", missing
        )
    return found


def finding_of(dataset: xr.Dataset, prefix: str = "change", **at: int) -> Finding:
    """The finding in a dataset; `at`: the index along each further axis, such as label=2."""
    names = ("p", *_TEXTS, *(f"{name}_interval" for name in _TEXTS))
    # What an earlier version has measured lacks the width.
    known = [name for name in names if f"{prefix}_{name}" in dataset]
    return finding_from({name: dataset[f"{prefix}_{name}"].isel(at).values for name in known})


def snapshots_around(tokens: Real[np.ndarray, " S"], start: float, end: float) -> tuple[int, int]:
    """Indexes of the last snapshot up to the start and of the first from the end on."""
    first = int(np.searchsorted(tokens, start, side="right")) - 1
    last = int(np.searchsorted(tokens, end, side="left"))
    return max(first, 0), min(last, len(tokens) - 1)


def before_and_after(tokens: Real[np.ndarray, " S"], finding: Finding) -> tuple[int, int]:
    """Indexes of the snapshots around the largest change; without one among them, of a tenth of the run and its end."""
    if (change := finding.largest) is not None:
        # A logistic step is 1 % done half its width before its start, 99 % as much after its end.
        half = change.width / 2 if np.isfinite(change.width) else 0.0
        first, last = snapshots_around(tokens, change.start - half, change.end + half)
        if first < last:
            return first, last
    return snapshots_around(tokens, float(tokens[-1]) / 10, float(tokens[-1]))


def _in_the_rows(finding: Finding, tokens: Real[np.ndarray, " S"], row_icl: Float[np.ndarray, "S row"]) -> Finding:
    """Those of the changes across which the rows' own scores fall by more than they differ; one row has no say."""
    n_rows = row_icl.shape[1]

    def is_in_them(change: Change) -> bool:
        before, after = snapshots_around(tokens, change.start, change.end)
        fall = row_icl[before].astype(np.float64) - row_icl[after]
        return bool(n_rows == 1 or fall.mean() >= _OVER_ROWS * fall.std(ddof=1) / np.sqrt(n_rows))

    return replace(finding, changes=tuple(change for change in finding.changes if is_in_them(change)))


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    schedule = None if context.recorded is None else context.recorded.schedule
    finding = find_changes(*icl_curve(context.recorded, dataset), schedule=schedule, direction=-1)
    finding = _in_the_rows(finding, dataset["tokens"].values, dataset["row_icl"].values)
    steps = dataset["snapshot"].values
    before, after = before_and_after(dataset["tokens"].values, finding)
    return {
        **{f"change_{name}": np.asarray(values[0]) for name, values in arrays_of([finding]).items()},
        "step_before": np.asarray(steps[before]),
        "step_after": np.asarray(steps[after]),
    }


DERIVED = Derived(
    name="phase_change",
    source="ours; after Olsson et al. 2022, Argument 1",
    needs=("icl_windowed", "row_icl"),
    variables={
        **change_variables("change", (), "nats", "the windowed ICL score"),
        "step_before": Variable(
            (), "1", "step of the last snapshot before the largest change (1 % done); none: a tenth of the run"
        ),
        "step_after": Variable((), "1", "step of the first snapshot after it (99 % done); none: the last snapshot"),
    },
    derive=derive,
)
