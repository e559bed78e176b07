"""The phase changes of the members of a run, and how they are distributed, as lines of text."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from icl_jax.maths.finding import Finding
from icl_jax.measures.phase_change import finding_of


def members_table(datasets: Mapping[int, xr.Dataset]) -> list[str]:
    """A line for each quantity over the members whose change has begun, then one for each member.

    datasets: the analysis of each, by its number. Of a member with several changes the largest counts.
    """
    findings = {k: finding_of(dataset) for k, dataset in datasets.items() if "change_p" in dataset}
    if not findings:
        return [f"analysis of {len(datasets)} members; the phase change was not asked for"]
    return [f"analysis of {len(datasets)} members", *_distribution(findings), *_members(findings)]


def _distribution(findings: Mapping[int, Finding]) -> list[str]:
    changes = [finding.largest for finding in findings.values()]
    begun = [change for change in changes if change is not None]
    ended = [change for change in begun if not change.is_open]
    counts = f"{len(ended)} changed, {len(begun) - len(ended)} still going on, {len(changes) - len(begun)} without"
    lines = [_line("phase change", counts)]
    for name, values, factor, unit in (
        ("start", [change.start for change in begun], 1e-6, "M tokens"),
        ("end", [change.end for change in ended], 1e-6, "M tokens"),
        ("width", [change.width for change in ended], 1e-6, "M tokens"),
        ("size", [change.size for change in begun], 1.0, "nats"),
    ):
        if values:
            low, middle, high = np.quantile(np.array(values) * factor, [0.05, 0.5, 0.95])
            lines.append(_line(f"  {name}", f"median {middle:.3g} {unit}, 5 % to 95 % {low:.3g} to {high:.3g}"))
    return lines


def _members(findings: Mapping[int, Finding]) -> list[str]:
    return [_line(f"member {k}", finding.words()) for k, finding in findings.items()]


def _line(title: str, text: str) -> str:
    return f"  {title:<28} {text}"
