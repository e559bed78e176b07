"""What the change-point detector says of a curve of training, in one word and in a line: every reader says it alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from jaxtyping import Float, Real

from icl_jax.maths.change_point import Change, changes
from icl_jax.maths.step_search import Schedule

LEAST = 0.05
LEAST_NATS = 0.01
LEAST_SHARE = 0.15
"""The smallest change that matters: of a probability or a share of attention; of a loss or score, whose scale is the
corpus' own (chains of three states have 0.13 nats in all); and as a part of what the curve does."""
MOST_CHANGES = 4
ALPHA = 0.03
"""Chance of a change in a smooth curve."""

Status = Literal["found", "still going on", "none", "too few points"]
_WORDS: dict[Status, str] = {"none": "no change found", "too few points": "not tested: fewer than eight points"}


@dataclass(frozen=True, slots=True)
class Finding:
    """The abrupt changes of one curve, in the order of training."""

    changes: tuple[Change, ...]
    p_value: float
    """Of a curve that is smooth throughout; NaN where it has too few points to tell."""

    @property
    def status(self) -> Status:
        if self.changes:
            return "still going on" if self.changes[-1].is_open else "found"
        return "too few points" if np.isnan(self.p_value) else "none"

    @property
    def largest(self) -> Change | None:
        return max(self.changes, key=lambda change: abs(change.size), default=None)

    def words(self, unit: str = " nats", n_tests: int = 1) -> str:
        """In a line: where each change is and how large, or why there is none; `n_tests` as in `find_changes`."""
        if self.changes:
            return "; ".join(change_words(change, unit) for change in self.changes)
        if np.isnan(self.p_value):
            return _WORDS[self.status]
        but = (
            ", but no step is large enough or out of a smooth curve's reach" if self.p_value <= ALPHA / n_tests else ""
        )
        return f"{_WORDS[self.status]} (p = {self.p_value:.1g}{but})"


def change_words(change: Change, unit: str = " nats") -> str:
    """`1.2 M to 1.84 M tokens, -0.62 nats (48 % of the run's change)`."""
    start = _millions(change.start)
    where = f"{start} to {_millions(change.end)} tokens"
    if change.is_open:
        where = f"from {start} tokens on, still going on at the end"
    return f"{where}, {change.size:+.2f}{unit} ({100 * change.share:.0f} % of the run's change)"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.3g} M"


def find_changes(
    tokens: Real[np.ndarray, " S"], curve: Float[np.ndarray, " S"], *, schedule: Schedule | None, direction: int,
    n_tests: int = 1, alpha: float = ALPHA,
) -> Finding:  # fmt: skip
    """The changes of a score in nats (`direction` -1) or of a probability (1): those that are large enough to matter.

    `n_tests`: curves that are looked at together; `alpha` is for all of them.
    """
    known = curve[np.isfinite(curve)]
    least = max(LEAST_NATS if direction < 0 else LEAST, LEAST_SHARE * float(np.ptp(known)) if len(known) else 0.0)
    found, p_value = changes(
        tokens, curve, schedule=schedule, direction=direction, least=least, alpha=alpha / n_tests, most=MOST_CHANGES
    )
    return Finding(tuple(found), p_value)


def find_in_record(record: xr.Dataset) -> Finding | None:
    """The changes of the windowed ICL score at a record's live probes; None for a run without probes."""
    if "icl_windowed" not in record:
        return None
    schedule = (record["tokens"].values, record["lr"].values) if record.sizes["step"] > 1 else None
    icl = record["icl_windowed"].values.astype(np.float64)
    return find_changes(record["probe_tokens"].values, icl, schedule=schedule, direction=-1)


def arrays_of(findings: Sequence[Finding]) -> dict[str, np.ndarray]:
    """As arrays: `status`, `p` [finding]; `start`, `end`, `size`, `share`, `width` [finding, change], `..._interval`.

    NaN where a finding has fewer than `MOST_CHANGES` changes; `end` and `width` are inf where one is still going on.
    """
    found: dict[str, np.ndarray] = {
        "status": np.array([finding.status for finding in findings], "U14"),
        "p": np.array([finding.p_value for finding in findings], np.float64),
    }
    for name in ("start", "end", "size", "share", "width"):
        values, intervals = (
            np.full((len(findings), MOST_CHANGES), np.nan),
            np.full((len(findings), MOST_CHANGES, 2), np.nan),
        )
        for i, finding in enumerate(findings):
            for j, change in enumerate(finding.changes):
                values[i, j], intervals[i, j] = getattr(change, name), getattr(change, f"{name}_interval")
        found |= {name: values, f"{name}_interval": intervals}
    return found


def finding_from(arrays: dict[str, np.ndarray]) -> Finding:
    """One finding from its arrays, as `arrays_of` gives them, without the axis of findings."""
    found = []
    for j in np.flatnonzero(np.isfinite(arrays["start"])):
        start, end, size, share = (float(arrays[name][j]) for name in ("start", "end", "size", "share"))
        names = ("start", "end", "size", "share", "width")
        intervals = [tuple(arrays[f"{name}_interval"][j].tolist()) for name in names if f"{name}_interval" in arrays]
        found.append(Change(start, end, size, share, *intervals))
    return Finding(tuple(found), float(arrays["p"]))
