"""Write the tables of docs/seeds.md: `python docs/tools/seeds.py docs/seeds.md RUN...`, and docs/seeds.png beside it.

RUN: a folder with the analysis.zarr of a run with members, named as its config. Every number between the marks of the
page is from there; a run that is not given loses its row.
"""

import sys
from pathlib import Path

import numpy as np
import xarray as xr
from etils import epath
from made_part import replace_part, save_small

from icl_jax.analysis.dataset import load_dataset
from icl_jax.report.figures.over_members import TIMES_FIGURE, ReportedMembers
from icl_jax.report.members_table import counts_text, number

_REFUTED = 0.05


def _quantile(data: xr.Dataset, name: str, i: int) -> str:
    if f"{name}_quantiles" not in data:
        return ""
    value, low, high = (number(data[f"{name}_quantiles{end}"].values[i], name) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


def _times(runs: list[ReportedMembers]) -> list[str]:
    lines = [
        "| | changes | start: 5 % | median | 95 % | width: median | size: median, nats |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        cells = [_quantile(run.data, "start", i) for i in (0, 2, 4)]
        cells += [_quantile(run.data, name, 2) for name in ("width", "size")]
        lines.append(
            f"| `{run.name}`, {run.data.sizes['member']} seeds | {counts_text(run.data)} | {' | '.join(cells)} |"
        )
    return lines


def _laws(runs: list[ReportedMembers]) -> list[str]:
    laws = next(run.data["law"].values.tolist() for run in runs if "law" in run.data)
    lines = [f"| | {' | '.join(laws)} |", f"|---|{'---|' * len(laws)}"]
    for run in (one for one in runs if "law_aic" in one.data):
        for i, time in enumerate(run.data["time"].values.tolist()):
            aic, p = run.data["law_aic"].values[i], run.data["law_p_value"].values[i]
            cells = [
                f"+{one - np.nanmin(aic):.1f}, p = {p_value:.2g}" if np.isfinite(one) else ""
                for one, p_value in zip(aic, p, strict=True)
            ]
            cells = [f"**{cell}**" if cell and p[j] >= _REFUTED else cell for j, cell in enumerate(cells)]
            lines.append(f"| `{run.name}`, {time} | {' | '.join(cells)} |")
    return lines


def _known(runs: list[ReportedMembers]) -> list[str]:
    lines = ["| | known at | what | rank correlation with the start | p |", "|---|---|---|---|---|"]
    for run in (one for one in runs if "predictor" in one.data):
        at = f"{float(run.data['known_tokens']) * 1e-6:.3g} M"
        for i, name in enumerate(run.data["predictor"].values.tolist()):
            rho, low, high, p = (
                float(run.data[f"predictor_{part}"].values[i]) for part in ("rho", "low", "high", "p_value")
            )
            if np.isfinite(rho):
                what = name.removeprefix("known_").replace("_", " ")
                lines.append(f"| `{run.name}` | {at} | {what} | {rho:+.2f} ({low:+.2f} to {high:+.2f}) | {p:.2g} |")
        r2, p = (float(run.data.attrs.get(f"predicted_{part}", np.nan)) for part in ("r2", "p"))
        if np.isfinite(r2):
            lines.append(
                f"| `{run.name}` | {at} | all of them, of seeds left out | {100 * r2:.0f} % of the variance | {p:.2g} |"
            )
    return lines


def tables(runs: list[ReportedMembers]) -> str:
    """The part of the page that is made."""
    parts = [
        "M tokens, with 95 % bootstrap intervals over seeds:", "", *_times(runs), "",
        "![Share of seeds not yet changed by T](seeds.png)", "",
        "AIC above the lowest, and the p-value of the fit; bold: not refuted.", "", *_laws(runs), "",
        "What is known after half the time until any seed's change begins:", "", *_known(runs),
    ]  # fmt: skip
    return "\n".join(parts)


def write(page: Path, folders: list[str]) -> None:
    """Replace what stands between the marks of the page. Raises UserError where an analysis is missing or damaged."""
    runs = [
        ReportedMembers(Path(folder).name, load_dataset(epath.Path(folder) / "analysis.zarr").load())
        for folder in folders
    ]
    replace_part(page, "seeds.py", tables(runs))
    save_small(TIMES_FIGURE, runs, page.with_suffix(".png"), width=1000)


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:])
