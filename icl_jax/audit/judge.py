"""What of a trajectory is out of line. The thresholds, and what clean runs come to, stand in docs/audit.md."""

import itertools
import warnings
from collections import defaultdict

import numpy as np

from icl_jax.audit.finding import Finding
from icl_jax.audit.trajectory import Trajectory

OUT = 1.5
"""Times farther from both neighbours than they are from each other, of a whole checkpoint or of a tensor. A steady
drift has 0.5, a random walk 0.71, three draws that have nothing of each other 1. Clean runs: up to 0.79."""
SMALL_OUT, SMALL = 3.0, 512
"""The same of a tensor of fewer numbers, which may happen to turn round. Clean runs: up to 1.8."""
END_OUT = 3.0
"""Times as far as the others go, more than in the two intervals beside: a tensor at an end. Clean runs: up to 1.4."""
JUMP = 5.0
"""Times the speed of the intervals before and after. Clean runs: up to 2.0."""
RETURN = 0.9
"""Share of the distance from step 0 that is left after one interval. Clean runs never lose any."""
UNRELATED = 6.0
"""Standard errors of the cosine of two random directions, 1 / sqrt(numbers). Clean runs: 43 or more."""
UNRELATED_COSINE = 0.1
"""Of trained neighbours, which share their means too. Clean runs: 0.86 or more."""
CHANGED = 20
"""Numbers of a tensor that rounding must leave changed before it counts as standing still."""
_EARLY = 0.1
_NEARLY_ALL = 0.75
_NAMED = 3


def judge(found: Trajectory) -> list[Finding]:
    """All but whole checkpoints that are equal, which the caller has left out; see `equal_checkpoints`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of intervals that no tensor moves in
        equal = _equal_tensors(found)
        out = _out_of_line(found)
        findings = _tensor_findings(found, equal, out)
        is_damaged = np.isin(found.steps, [step for finding in findings for step in finding.steps])
        findings += _descent(found, is_damaged) + _jumps_and_returns(found, is_damaged)
    return findings


def equal_checkpoints(hashes: dict[int, str]) -> tuple[list[Finding], list[str], set[int]]:
    """Findings, notes and the steps that are then left out, of checkpoints that are one by their hashes.

    Step 0 and step 1 may be equal: a warm-up begins at a learning rate of 0.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for step, sha256 in sorted(hashes.items()):
        groups[sha256].append(step)
    findings, notes, left_out = [], [], set()
    for steps in groups.values():
        if steps == [0, 1]:
            notes.append("steps 0 and 1 hold the same weights, as after an update with a learning rate of 0")
        elif len(steps) > 1:
            said = f"{len(steps)} checkpoints hold the same weights, which can be those of one step alone"
            findings.append(Finding(steps=tuple(steps), kind="equal weights", said=said))
            left_out |= set(steps)
    return findings, notes, left_out


def _equal_tensors(found: Trajectory) -> dict[tuple[int, int], int]:
    """(checkpoint, tensor) to another checkpoint that has the same: of two that are equal the later one is named.

    Not what may stand still: a tensor that never moves, one at its first values in the first interval, and one whose
    type is too coarse for the interval.
    """
    equal = {}
    moved = np.nanmedian(np.where(found.from_last > 0, found.from_last, np.nan) / np.sqrt(found.sizes), axis=1)
    for u in range(len(found.names)):
        groups: defaultdict[bytes, list[int]] = defaultdict(list)
        for s, row in enumerate(found.hashes):
            groups[row[u]].append(s)
        if len(groups) == 1:
            continue
        for group in groups.values():
            for i, j in itertools.pairwise(group):
                most = np.nanmax(moved[i + 1 : j + 1])
                share = min(1.0, most / max(found.spacing[i, u], 1e-30))
                is_first = j == 1 and found.steps[1] - found.steps[0] == 1
                if not is_first and found.sizes[u] * share >= CHANGED:
                    equal[j, u], equal[i, u] = i, j
    return equal


def _out_of_line(found: Trajectory) -> dict[tuple[int, int], float]:
    """(checkpoint, tensor) to the ratio by which it stands apart from its neighbours."""
    out: dict[tuple[int, int], float] = {}
    root = np.sqrt(found.sizes)
    n = len(found.steps)
    if n >= 3:
        apart = np.minimum(found.from_last[1:-1], found.from_last[2:])
        across = found.from_last_but_one[2:]
        ratio = apart / np.maximum(across, 1e-30)
        is_small = found.sizes < SMALL
        # A few numbers that turn round go no farther than the others do.
        is_far = apart / root > np.nanmedian(across / root, axis=1, keepdims=True)
        is_out = np.where(is_small, (ratio > SMALL_OUT) & is_far, ratio > OUT)
        for s, u in zip(*np.where(is_out), strict=True):
            out[int(s) + 1, int(u)] = float(ratio[s, u])
    if n >= 4 and len(found.names) > 1:
        pace = found.from_last[1:] / root
        pace = pace / np.maximum(np.nanmedian(pace, axis=1, keepdims=True), 1e-30)
        for s, end, beside in ((n - 1, pace[-1], pace[-3:-1]), (0, pace[0], pace[1:3])):
            ratio = end / np.maximum(beside.max(axis=0), 1e-30)
            for u in np.flatnonzero((ratio > END_OUT) & (end > 1)):
                out[s, int(u)] = float(ratio[u])
    return out


def _tensor_findings(
    found: Trajectory, equal: dict[tuple[int, int], int], out: dict[tuple[int, int], float]
) -> list[Finding]:
    """One for each checkpoint with tensors that are not its own."""
    findings = []
    # Of two checkpoints with an equal tensor the one in which it stands farther out is at fault.
    equal = {
        (s, u): other
        for (s, u), other in equal.items()
        if (_blame(found, s, u, out), s) > (_blame(found, other, u, out), other)
    }
    for s, step in enumerate(found.steps.tolist()):
        units = sorted(u for t, u in out.keys() | equal.keys() if t == s)
        ratio = _whole_ratio(found, s)
        if len(units) > _NEARLY_ALL * len(found.names) or (ratio > OUT and not units):
            said = (
                f"{ratio:.1f} times farther from both neighbours than they are from each other (at most 0.7 is usual)"
            )
            if not np.isfinite(ratio):
                said = f"{len(units)} of its {len(found.names)} tensors are out of line"
            findings.append(Finding(steps=(step,), kind="checkpoint out of line", said=said))
            continue
        if not units:
            continue
        parts = []
        for u in units[:_NAMED]:
            what = found.names[u]
            if found.is_constant[s, u] and (s, u) in out:
                what += " is one number throughout"
            elif (s, u) in equal:
                what += f" equals that of step {found.steps[equal[s, u]]}"
            else:
                what += f" stands {out[s, u]:.1f} times farther off than its neighbours' distance"
            parts.append(what)
        more = f", and {len(units) - _NAMED} more tensors" if len(units) > _NAMED else ""
        findings.append(Finding(steps=(step,), kind="tensor out of line", said="; ".join(parts) + more))
    return findings


def _blame(found: Trajectory, s: int, u: int, out: dict[tuple[int, int], float]) -> float:
    if (s, u) in out:
        return float("inf")
    ratio = _ratio(found, s, u)
    return ratio if np.isfinite(ratio) else 0.0


def _whole_ratio(found: Trajectory, s: int) -> float:
    return _ratio(found, s, np.arange(len(found.names)))


def _ratio(found: Trajectory, s: int, u: int | np.ndarray) -> float:
    """Of one tensor, or of several together; NaN at the ends."""
    if not 0 < s < len(found.steps) - 1:
        return float("nan")
    to_last, to_next = (float(np.linalg.norm(found.from_last[i, u])) for i in (s, s + 1))
    return min(to_last, to_next) / max(float(np.linalg.norm(found.from_last_but_one[s + 1, u])), 1e-30)


def _descent(found: Trajectory, is_damaged: np.ndarray) -> list[Finding]:
    """Checkpoints that have nothing of the one before: other weights were trained on."""
    findings = []
    m = found.is_matrix
    n = int(found.sizes[m].sum())
    for s in range(1, len(found.steps)):
        product = np.linalg.norm(found.norms[s, m]) * np.linalg.norm(found.norms[s - 1, m])
        if not n or not product or is_damaged[s] or is_damaged[s - 1]:
            continue
        cosine = float(found.dot_last[s, m].sum() / product)
        before, step = int(found.steps[s - 1]), int(found.steps[s])
        least = UNRELATED / np.sqrt(n)
        numbers = f"cosine {cosine:.4f} where unrelated weights have less than {least:.4f}"
        if before == 0:
            # Far into a run little may be left of its start.
            if cosine < least and step <= _EARLY * found.steps[-1]:
                said = f"step {step} has nothing of step 0: another initialisation was trained ({numbers})"
                findings.append(Finding(steps=(0, step), kind="start", said=said))
        elif cosine < max(least, UNRELATED_COSINE):
            said = f"step {step} has nothing of step {before}: other weights were trained on (cosine {cosine:.4f})"
            findings.append(Finding(steps=(before, step), kind="descent", said=said))
    return findings


def _jumps_and_returns(found: Trajectory, is_damaged: np.ndarray) -> list[Finding]:
    findings = []
    n = len(found.steps)
    travelled, distance = (np.sqrt((part**2).sum(axis=1)) for part in (found.from_last, found.from_start))
    spans = np.diff(found.steps.astype(float), prepend=np.nan)
    # Noise goes as the root of the steps, a drift as the steps: what is a jump is one by both.
    paces = [travelled / spans**power for power in (0.5, 1.0)]
    for s in range(1, n):
        touched = is_damaged[max(0, s - 2) : s + 2]
        if touched.any():
            continue
        beside = [i for i in (s - 1, s + 1) if 1 <= i < n]
        is_end = s == n - 1
        if len(beside) == 2 or (is_end and beside):
            ratio = min(float(pace[s] / np.max(pace[beside])) for pace in paces)
            if ratio > JUMP:
                said = f"{ratio:.1f} times as fast as before and after (at most 2 is usual)"
                said = said.replace(" and after", "") if is_end else said
                findings.append(Finding(steps=(int(found.steps[s - 1]), int(found.steps[s])), kind="jump", said=said))
        if s > 1 and distance[s] < RETURN * distance[s - 1]:
            said = f"the distance from step {found.steps[0]} falls from {distance[s - 1]:.3g} to {distance[s]:.3g}"
            findings.append(Finding(steps=(int(found.steps[s - 1]), int(found.steps[s])), kind="return", said=said))
    return findings
