"""Which snapshots an analysis looks at."""

from collections.abc import Sequence

import numpy as np

from icl_jax.config import UserError
from icl_jax.rundir import SnapshotEntry

_N_FEW = 20


def choose_entries(entries: list[SnapshotEntry], snapshots: int | Sequence[int] | None) -> list[SnapshotEntry]:
    """All of them; or so many, spread evenly over the list, first and last included; or those of the steps named.

    Raises UserError for a number below 2 or a step without a snapshot.
    """
    if snapshots is None:
        return entries
    if isinstance(snapshots, int):
        if snapshots < 2:
            raise UserError(f"--snapshots = {snapshots}: must be 2 or more, or a list of steps such as 0,100,200")
        return [entries[i] for i in spread(len(entries), snapshots)]
    by_step = {entry.step: entry for entry in entries}
    for step in snapshots:
        if step not in by_step:
            near = ", ".join(str(s) for s in sorted(sorted(by_step, key=lambda s: abs(s - step))[:3]))
            raise UserError(f"--snapshots: no snapshot of step {step}; the nearest are {near}")
    return [by_step[step] for step in sorted(set(snapshots))]


def spread(n: int, n_chosen: int) -> list[int]:
    """Indexes of `n_chosen` of `n` things, evenly spread, first and last included."""
    return sorted({int(i) for i in np.round(np.linspace(0, n - 1, min(n, n_chosen)))})


def choose_few(tokens: np.ndarray, window: tuple[int, int] | None) -> list[int]:
    """Indexes of about 20 snapshots for costly measurements: evenly spread in tokens, and both ends of the window.

    Evenly in tokens and not in number, since half of the snapshots are log-spaced and lie in the first steps.
    """
    if len(tokens) <= _N_FEW:
        return list(range(len(tokens)))
    chosen = {0, len(tokens) - 1, *(window or ())}
    wanted = np.linspace(tokens[0], tokens[-1], _N_FEW)
    # From the middle out, so that what is left over when the number is reached is not one end.
    for target in sorted(wanted, key=lambda t: abs(t - wanted.mean())):
        if len(chosen) < _N_FEW:
            chosen.add(int(np.argmin(np.abs(tokens - target))))
    return sorted(chosen)
