"""The picture of an audit: how far the weights went, how fast, and how far each checkpoint stands apart."""

from pathlib import Path

import numpy as np

from icl_jax.audit.audit import Audit
from icl_jax.audit.judge import OUT
from icl_jax.audit.trajectory import Trajectory
from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.pictures import save_charts

_STEP = Axis(label="step", is_log=True)


def save_picture(audit: Audit, path: Path) -> bool:
    """Write it as its suffix says (PNG, PDF, SVG); False, and nothing, where no tensors were looked at."""
    if audit.trajectory is None or len(audit.trajectory.steps) < 3:
        return False
    save_charts(f"audit of {audit.name}", charts(audit), path)
    return True


def charts(audit: Audit) -> list[Chart]:
    """Distance from the first checkpoint, and how far out of line each is; those with findings are dots."""
    found = audit.trajectory
    assert found is not None
    bad = np.isin(found.steps, [step for finding in audit.findings for step in finding.steps])
    norms = np.sqrt((found.norms[0] ** 2).sum())
    distance = np.sqrt((found.from_start**2).sum(axis=1)) / max(float(norms), 1e-30)
    whole, worst = _ratios(found)
    inner = found.steps[1:-1]
    return [
        Chart(
            x=_STEP, y=Axis(label="distance from the first / its norm"), title="How far",
            series=[Series(label="all weights", x=found.steps, y=distance), *_dots(found.steps, distance, bad)],
        ),
        Chart(
            x=_STEP, y=Axis(label="distance to the nearer neighbour / theirs", is_log=True), title="Out of line",
            series=[
                Series(label="all weights", x=inner, y=whole),
                Series(label="the tensor that is most", x=inner, y=worst, colour=1),
                Series(label="limit", x=inner, y=np.full(len(inner), OUT), colour=6, dashed=True, width=1),
                *_dots(inner, worst, bad[1:-1]),
            ],
            legend=True,
        ),
    ]  # fmt: skip


def _ratios(found: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """[S - 2] each: of all weights together, and the highest of the tensors."""
    last, across = found.from_last, found.from_last_but_one[2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        tensors = np.minimum(last[1:-1], last[2:]) / across
        lengths = np.sqrt((last**2).sum(axis=1))
        whole = np.minimum(lengths[1:-1], lengths[2:]) / np.sqrt((across**2).sum(axis=1))
    return whole, np.nanmax(np.where(np.isfinite(tensors), tensors, 0), axis=1)


def _dots(x: np.ndarray, y: np.ndarray, bad: np.ndarray) -> list[Series]:
    return [Series(label="finding", x=x[bad], y=y[bad], dots=True, colour=1)] if bad.any() else []
