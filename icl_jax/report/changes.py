"""Where the changes of several runs lie, in a few words: one run, or the seeds of one experiment."""

from collections.abc import Sequence

import numpy as np

from icl_jax.maths.change_point import Change
from icl_jax.maths.finding import Finding
from icl_jax.report.seeds import interval


def window_words(findings: Sequence[Finding]) -> str:
    """`1.2 to 1.8 M tokens`, of the largest change: over runs the mean with its 95 % interval; or why there is none."""
    largest = [change for finding in findings if (change := finding.largest) is not None]
    if not largest:
        return "no change found" if any(np.isfinite(finding.p_value) for finding in findings) else "too few points"
    if len(largest) < len(findings):
        return f"in {len(largest)} of {len(findings)}: {_window(largest)}"
    return _window(largest)


def _window(found: Sequence[Change]) -> str:
    start = _mean([change.start for change in found])
    n_open = sum(change.is_open for change in found)
    if n_open:
        which = "" if n_open == len(found) else f" in {n_open}"
        return f"from {start} M tokens on, still going on at the end{which}"
    return f"{start} to {_mean([change.end for change in found])} M tokens"


def _mean(tokens: Sequence[float]) -> str:
    mean, half = interval(np.array(tokens) / 1e6)
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ±{half:.1f}"
