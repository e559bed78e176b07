"""Runs with members in a report: which members are shown one by one, and the numbers over all of them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from icl_jax.analysis.dataset import load_dataset
from icl_jax.report.axes import axes_of
from icl_jax.report.figures.figure import Drawable
from icl_jax.report.figures.laws import LAWS
from icl_jax.report.figures.over_members import OVER_MEMBERS, ReportedMembers, member_rows
from icl_jax.rundir import RunDir

MOST_SHOWN = 5
"""Members that a page shows everything of."""
_AGAIN = "phrase_again"
_AT = (0.0, 1.0, 0.5, 0.25, 0.75)
"""Of the members in the order of their changes: the first, the last, the one in the middle, the quartiles."""


def reported_members(run: RunDir, name: str) -> ReportedMembers:
    """Of RUN/analysis.zarr. Raises UserError where it is missing or damaged."""
    data, repeated = load_dataset(run.path / "analysis.zarr").load(), float("nan")
    held_out = run.load_held_out()
    if held_out.labels is not None and _AGAIN in held_out.label_names:
        repeated = float(np.mean(held_out.labels[:, 1:] == 1 + held_out.label_names.index(_AGAIN)))
    return ReportedMembers(name, data, run.config, repeated)


def members_figures(members: Sequence[ReportedMembers]) -> tuple[Drawable, ...]:
    """Figures over members; over runs too, where they vary a field."""
    return (*OVER_MEMBERS, *([LAWS] if axes_of(members) else []))


def shown_members(dataset: xr.Dataset, most: int = MOST_SHOWN) -> list[int]:
    """Members that stand for all, in their order: by the time of the change, then outliers and those without."""
    start = dataset["start"].values
    has = np.flatnonzero(np.isfinite(start))
    in_order = has[np.argsort(start[has], kind="stable")].tolist()
    by_time = [in_order[round(at * (len(in_order) - 1))] for at in _AT if in_order]
    outliers = [one["member"] for one in json.loads(dataset.attrs["outliers"])]
    # One without a change is shown too, where there is one.
    without = np.flatnonzero(~np.isfinite(start)).tolist()[:1]
    chosen = dict.fromkeys([*by_time[:3], *without, *by_time[3:], *outliers, *range(dataset.sizes["member"])])
    return sorted(list(chosen)[:most])


def save_members_csv(members: list[ReportedMembers], path: Path) -> None:
    """A row for each member, with every number of it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        headers: list[list[str]] = []
        for one in members:
            header, rows = member_rows(one)
            if header not in headers:
                headers.append(header)
                writer.writerow(header)
            writer.writerows(rows)
