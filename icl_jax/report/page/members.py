"""What the page says of the members of runs: numbers over all of them, and each one's, to choose from."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from icl_jax.analysis.over_members import QUANTITIES, TIMES
from icl_jax.report.figures.over_members import SCATTER, ReportedMembers, quantities, quantity_axis
from icl_jax.report.members_table import counts_text, number
from icl_jax.report.page.arrays import ArrayStore
from icl_jax.report.reported_run import ReportedRun


def over_members(
    members: Sequence[ReportedMembers], runs: list[ReportedRun], store: ArrayStore
) -> list[dict[str, Any]]:
    """Of each run with members what its section of the page says; integers under `values` name arrays of the store."""
    shown = {run.name: i for i, run in enumerate(runs)}
    return [_of_run(one, shown, store) for one in members]


def _of_run(members: ReportedMembers, shown: dict[str, int], store: ArrayStore) -> dict[str, Any]:
    data = members.data
    names = quantities(data)
    numbers = data["member"].values.tolist()
    return {
        "name": members.name,
        "counts": counts_text(data),
        "quantiles": _quantiles(data),
        "laws": _laws(data),
        "known": _known(data),
        "predicted": _predicted(data),
        "outliers": json.loads(data.attrs["outliers"]),
        "seeds": data["seed"].values.tolist(),
        "status": data["status"].values.tolist(),
        # Columns of this page; the others have a page of their own, or can have one.
        "shown": [shown.get(f"{members.name}/members/{k}") for k in numbers],
        "scatter": list(SCATTER),
        "quantities": [
            {"name": name, "label": label, "tokens": quantity_axis(name).is_tokens,
             "values": store.put(data[name].values.astype(np.float64))}
            for name, label in names.items()
        ],
    }  # fmt: skip


def _quantiles(data: xr.Dataset) -> list[list[str]]:
    """A row for each quantity: its name, then each quantile with the interval."""
    rows = []
    for name in (one for one in QUANTITIES if f"{one}_quantiles" in data and one != "share"):
        parts = zip(*(data[f"{name}_quantiles{end}"].values for end in ("", "_low", "_high")), strict=True)
        cells = [f"{number(value, name)} ({number(low, name)} to {number(high, name)})" for value, low, high in parts]
        unit = "M tokens" if QUANTITIES[name] == "tokens" else QUANTITIES[name]
        rows.append([f"{name}, {unit}", *cells])
    return rows


def _laws(data: xr.Dataset) -> list[list[str]]:
    """A row for each law from the likeliest on, of each time."""
    rows = []
    for i, time in enumerate(TIMES if "law_aic" in data else ()):
        aic = data["law_aic"].values[i]
        for j in np.argsort(aic) if np.isfinite(aic).any() else ():
            p, distance = (float(data[f"law_{part}"].values[i, j]) for part in ("p_value", "distance"))
            finding = "refuted" if p < 0.05 else "not refuted"
            rows.append([time, str(data["law"].values[j]), f"{aic[j] - np.nanmin(aic):.1f}", f"{distance:.3f}",
                         f"{p:.2g}", finding])  # fmt: skip
    return rows


def _known(data: xr.Dataset) -> list[list[str]]:
    """A row for each number that is known before: its rank correlation with the start, interval and p-value."""
    rows = []
    for i, name in enumerate(data["predictor"].values.tolist() if "predictor" in data else ()):
        rho, low, high, p = (float(data[f"predictor_{part}"].values[i]) for part in ("rho", "low", "high", "p_value"))
        if np.isfinite(rho):
            words = name.removeprefix("known_").replace("_", " ")
            rows.append([words, f"{rho:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.2g}"])
    return rows


def _predicted(data: xr.Dataset) -> str:
    r2, p, n = (float(data.attrs.get(f"predicted_{part}", np.nan)) for part in ("r2", "p", "n"))
    if "known_tokens" not in data:
        return ""
    where = f"Known at {float(data['known_tokens']) * 1e-6:.3g} M tokens, half the time until the first change."
    if not np.isfinite(r2):
        return f"{where} Too few members changed for a prediction by all of them."
    share = f"{100 * r2:.0f} % of the variance of the start (p = {p:.2g}, n = {n:.0f})"
    return f"{where} Together they predict, of members that are left out, {share}."
