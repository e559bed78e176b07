"""The phase changes of the members of a run, how they are distributed and what tells them, as lines of text."""

import json
from collections import Counter

import numpy as np
import xarray as xr

from icl_jax.analysis.over_members import TIMES

_UNITS = {"start": (1e-6, "M tokens"), "end": (1e-6, "M tokens"), "width": (1e-6, "M tokens"), "size": (1.0, "nats")}
_FITS = 0.05
"""P-value from which on a law is not refuted."""


def members_table(dataset: xr.Dataset) -> list[str]:
    """Lines about all members together, then one for each. dataset: RUN/analysis.zarr."""
    together = [_line("phase change", counts_text(dataset)), *_quantiles(dataset), *laws_text(dataset)]
    together += [*_heads(dataset), *prediction_text(dataset), *outliers_text(dataset)]
    return [f"analysis of {dataset.sizes['member']} members", *together, *_members(dataset)]


def counts_text(dataset: xr.Dataset) -> str:
    """How many have changed, in a line."""
    counts = Counter(dataset["status"].values.tolist())
    rest = dataset.sizes["member"] - counts["found"] - counts["still going on"]
    return f"{counts['found']} changed, {counts['still going on']} still going on, {rest} without"


def number(value: float, name: str) -> str:
    """A quantity in its unit, without it: three digits."""
    return "not reached" if np.isinf(value) else f"{value * _UNITS[name][0]:.3g}"


def _quantiles(dataset: xr.Dataset) -> list[str]:
    lines = []
    for name, (_, unit) in _UNITS.items():
        if f"{name}_quantiles" in dataset:
            low, _, middle, _, high = (number(value, name) for value in dataset[f"{name}_quantiles"].values)
            ends = [number(dataset[f"{name}_quantiles_{end}"].values[2], name) for end in ("low", "high")]
            text = f"median {middle} ({ends[0]} to {ends[1]}) {unit}, 5 % to 95 % of members {low} to {high}"
            lines.append(_line(f"  {name}", text))
    return lines


def laws_text(dataset: xr.Dataset) -> list[str]:
    """For each time the laws from the likeliest on, with the difference of AIC and the p-value."""
    lines = []
    for i, name in enumerate(TIMES if "law_aic" in dataset else ()):
        aic, p_values = dataset["law_aic"].values[i], dataset["law_p_value"].values[i]
        if np.isnan(aic).all():
            continue
        parts = [
            f"{dataset['law'].values[j]} (+{aic[j] - np.nanmin(aic):.1f}, p = {p_values[j]:.2g})"
            for j in np.argsort(aic)
        ]
        lines.append(_line(f"  law of the {name}", f"by AIC, refuted below p = {_FITS}: {', '.join(parts)}"))
    return lines


def _heads(dataset: xr.Dataset) -> list[str]:
    lines = []
    for kind, title in (("induction", "best prefix matching"), ("previous", "best previous token")):
        if f"{kind}_layer" in dataset:
            layers = Counter(dataset[f"{kind}_layer"].values.tolist())
            text = ", ".join(f"layer {layer}: {n} members" for layer, n in sorted(layers.items()))
            lines.append(_line(f"  {title}", text))
    return lines


def prediction_text(dataset: xr.Dataset) -> list[str]:
    """What is known before the first change, and how the start goes with it."""
    if "predictor_rho" not in dataset or np.isnan(dataset["predictor_rho"].values).all():
        return []
    lines = [
        _line(
            "  known at", f"{float(dataset['known_tokens']) * 1e-6:.3g} M tokens, half the time until the first change"
        )
    ]
    for i, name in enumerate(dataset["predictor"].values.tolist()):
        rho, low, high, p = (
            float(dataset[f"predictor_{part}"].values[i]) for part in ("rho", "low", "high", "p_value")
        )
        if np.isfinite(rho):
            text = f"rank correlation with the start {rho:+.2f} ({low:+.2f} to {high:+.2f}), p = {p:.2g}"
            lines.append(_line(f"    {name.removeprefix('known_').replace('_', ' ')}", text))
    r2, p = dataset.attrs.get("predicted_r2", np.nan), dataset.attrs.get("predicted_p", np.nan)
    if np.isfinite(r2):
        text = f"{100 * r2:.0f} % of the variance of the start, of members left out, p = {p:.2g}"
        lines.append(_line("    all of them predict", text))
    return lines


def outliers_text(dataset: xr.Dataset) -> list[str]:
    """A line for each outlier, by its name."""
    return [
        _line("  outlier", f"member {one['member']} (seed {one['seed']}): {one['why']}")
        for one in json.loads(dataset.attrs["outliers"])
    ]


def _members(dataset: xr.Dataset) -> list[str]:
    lines = []
    for k in dataset["member"].values.tolist():
        one = dataset.isel(member=k)
        status, start, end = str(one["status"].values), float(one["start"]), float(one["end"])
        text = {"found": f"{number(start, 'start')} to {number(end, 'end')} M tokens, {float(one['size']):+.2f} nats",
                "still going on": f"from {number(start, 'start')} M tokens on, still going on at the end",
                "none": f"no change found (p = {float(one['p']):.1g})"}.get(status, status)  # fmt: skip
        lines.append(_line(f"member {k}", text))
    return lines


def _line(title: str, text: str) -> str:
    return f"  {title:<28} {text}"
