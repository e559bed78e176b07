"""Figures of the members of a run: curves of all, when they change, where their heads are, one number by another."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from icl_jax.analysis.over_members import QUANTITIES, TIMES
from icl_jax.config import Config
from icl_jax.maths.laws import LAWS
from icl_jax.report.chart import Axis, Chart, Gap, Heat, Series
from icl_jax.report.figures.figure import TOKENS, Captions, Panel

_SHARE = Axis(label="share of members", range=(0.0, 1.02))
_N_ALIGNED = 121
_MOST_LINES = 100
_REFUTED = 0.05
SCATTER = ("start", "size")
"""What the scatter shows at first."""
_LABELS = {
    "start": "start (training tokens)",
    "end": "end (training tokens)",
    "width": "width (training tokens)",
    "size": "size of the change (nats)",
    "share": "share of the run's change",
    "induction_score": "best prefix matching at the end",
    "previous_score": "best previous-token score at the end",
    "known_loss": "loss before any change (nats)",
    "known_icl": "ICL score before any change (nats)",
    "known_previous_token": "previous-token score before any change",
    "known_prefix_matching": "prefix matching before any change",
    "known_k_composition": "K-composition before any change",
}


@dataclass(frozen=True, slots=True)
class ReportedMembers:
    """The members of a run: RUN/analysis.zarr, in memory."""

    name: str
    data: xr.Dataset
    config: Config | None = None
    repeated: float = float("nan")
    """Share of held-out tokens that a phrase says again; NaN for a corpus that does not label them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersFigure(Captions):
    """Charts of all members of a run together."""

    chart: Callable[[ReportedMembers], list[Chart] | Gap]

    def panels(self, runs: list[ReportedMembers]) -> list[Panel]:
        found = []
        for members in runs:
            lacking = next((name for name in self.needs if name not in members.data), None)
            why = f"{members.name}: no member has changed yet" if lacking else ""
            charts = Gap(why) if lacking else self.chart(members)
            found += [Panel(None, one) for one in (charts if isinstance(charts, list) else [charts])]
        return found


def quantities(dataset: xr.Dataset) -> dict[str, str]:
    """Numbers that each member has, with labels for an axis."""
    fields = {
        str(name): str(name)
        for name, values in dataset.data_vars.items()
        if values.dims == ("member",) and "." in str(name)
    }
    return {name: label for name, label in (_LABELS | fields).items() if name in dataset}


def quantity_axis(name: str) -> Axis:
    """The axis of a number that each member has."""
    return Axis(label=_LABELS.get(name, name), is_tokens=QUANTITIES.get(name) == "tokens", column=name)


def _bands(x: np.ndarray, curves: np.ndarray, colour: int = 0) -> list[Series]:
    """Median, and the middle half and nine tenths of members, at each place that some member is at."""
    is_there = np.isfinite(curves).any(axis=0)
    x, curves = x[is_there], curves[:, is_there]
    low, lower, middle, upper, high = np.nanquantile(curves, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    return [
        Series(
            label="5 to 95 % of members", x=x, y=middle, low=low, high=high, colour=colour, width=0.1, in_legend=False
        ),
        Series(
            label="median, 25 to 75 %, 5 to 95 % of members",
            x=x,
            y=middle,
            low=lower,
            high=upper,
            colour=colour,
            width=2,
        ),
    ]


def _curves(members: ReportedMembers) -> list[Chart]:
    data = members.data
    tokens, icl = data["probe_tokens"].values.astype(np.float64), data["icl"].values
    axis = Axis(label="ICL score (nats)")
    charts = [Chart(title=f"{members.name}: over training", x=TOKENS, y=axis, series=_bands(tokens, icl))]
    middle = (data["start"].values + data["end"].values) / 2
    has = np.flatnonzero(np.isfinite(middle))
    if len(has):
        moved = {k: (tokens - middle[k], icl[k] - np.interp(middle[k], tokens, icl[k])) for k in has.tolist()}
        # Where most members still are, so that a median is not of a few.
        grid = np.linspace(-np.quantile(middle[has], 0.25), tokens[-1] - np.quantile(middle[has], 0.75), _N_ALIGNED)
        curves = np.array([np.interp(grid, *line, left=np.nan, right=np.nan) for line in moved.values()])
        drawn = has[np.unique(np.linspace(0, len(has) - 1, _MOST_LINES).astype(int))].tolist()
        lines = [
            Series(label=f"member {k}", x=moved[k][0], y=moved[k][1], width=0.6,
                   member=f"{members.name}/members/{k}", in_legend=False)
            for k in drawn
        ]  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # where no member is
            lines.append(Series(label="median", x=grid, y=np.nanmedian(curves, axis=0), colour=1, width=2))
        x = Axis(label="training tokens from the middle of each one's change", is_tokens=True)
        y = Axis(label="ICL score, from there (nats)")
        charts.append(Chart(title=f"{members.name}: aligned at each one's change", x=x, y=y, series=lines))
    return charts


def _steps(times: np.ndarray, share: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a curve that falls at each time, from 0 to the end."""
    x = np.concatenate([[0.0], np.repeat(times, 2), [end]])
    return x, np.concatenate([[1.0, 1.0], np.repeat(share, 2)])


def _times(members: ReportedMembers) -> list[Chart]:
    data = members.data
    end = float(np.nanmax(data["last_tokens"].values))
    series = []
    for i, name in enumerate(TIMES):
        if f"{name}_survival_times" not in data:
            continue
        times, *shares = (data[f"{name}_survival_{part}"].values for part in ("times", "share", "low", "high"))
        (corners, share), (_, low), (_, high) = (_steps(times, values, end) for values in shares)
        series.append(Series(label=f"not yet past the {name}", x=corners, y=share, low=low, high=high, colour=i))
        if "law_aic" in data and np.isfinite(data["law_aic"].values[i]).any():
            j = int(np.nanargmin(data["law_aic"].values[i]))
            law, p_value = str(data["law"].values[j]), float(data["law_p_value"].values[i, j])
            grid = np.linspace(end / 400, end, 400)
            with np.errstate(all="ignore"):
                curve = np.exp(LAWS[law].log_sf(grid, *data["law_parameters"].values[i, j]))
            verdict = f"p = {p_value:.2g}{', refuted' if p_value < _REFUTED else ''}"
            series.append(Series(label=f"{name}: {law}, {verdict}", x=grid, y=curve, colour=i, dashed=True, width=1))
    x = Axis(label="training tokens T", is_tokens=True)
    return [Chart(title=f"{members.name}: not yet changed by T", x=x, y=_SHARE, series=series, legend=True)]


def _scatter(members: ReportedMembers) -> list[Chart]:
    return [scatter_chart(members, *SCATTER)]


def scatter_chart(members: ReportedMembers, x: str, y: str) -> Chart:
    """A dot for each member, at two of its numbers."""
    data = members.data
    both = np.flatnonzero(np.isfinite(data[x].values) & np.isfinite(data[y].values))
    dots = Series(label="members", x=data[x].values[both], y=data[y].values[both], dots=True)
    return Chart(title=f"{members.name}: {y} by {x}", x=quantity_axis(x), y=quantity_axis(y), series=[dots])


def _heads(members: ReportedMembers) -> list[Chart] | Gap:
    data = members.data
    if "prefix_matching" not in data:
        return Gap(f"{members.name}: the model has no heads")
    n_layers, n_heads = data.sizes["layer"], data.sizes["head"]
    charts = []
    for kind, score in (("induction", "prefix matching"), ("previous", "previous-token score")):
        counts = np.zeros((n_layers, n_heads))
        np.add.at(counts, (data[f"{kind}_layer"].values, data[f"{kind}_head"].values), 1)
        heat = Heat(x=np.arange(n_heads), y=np.arange(n_layers), z=counts, label="members")
        x, y = Axis(label="head", is_count=True), Axis(label="layer", is_count=True)
        charts.append(Chart(title=f"{members.name}: best {score}", x=x, y=y, heat=heat))
    return charts


def member_rows(members: ReportedMembers) -> tuple[list[str], list[list[Any]]]:
    """Every number of every member, for a CSV file: header and rows."""
    data = members.data
    names = [str(name) for name, values in data.variables.items() if values.dims == ("member",) and name != "member"]
    intervals = [str(name) for name, values in data.variables.items() if values.dims == ("member", "bound")]
    header = ["run", "member", *names, *(f"{name}_{end}" for name in intervals for end in ("low", "high"))]
    rows = [
        [members.name, k, *(data[name].values[k].item() for name in names),
         *(data[name].values[k, end].item() for name in intervals for end in (0, 1))]
        for k in range(data.sizes["member"])
    ]  # fmt: skip
    return header, rows


CURVES = MembersFigure(
    name="members_curves",
    title="Curves of all members",
    shows="The ICL score: how members are distributed at each moment, and each one's curve moved to where its "
    "change is half done.",
    look_for="Aligned curves that lie on each other say that members differ in when they change, and not in how.",
    needs=("icl",),
    chart=_curves,
)
TIMES_FIGURE = MembersFigure(
    name="members_times",
    title="When members change",
    shows="Share of members whose largest change has not begun, and has not ended, by then (Kaplan-Meier, with 95 % "
    "intervals; a member without a change counts until its last probe); dashed: the law with the lowest AIC.",
    look_for="A delay and then an exponential: from there on the chance is the same at each moment.",
    needs=("start_survival_times",),
    chart=_times,
)
SCATTER_FIGURE = MembersFigure(
    name="members_scatter",
    title="One number by another",
    shows="A dot for each member.",
    look_for="Whether what is known before the first change tells when a member's comes.",
    needs=("start_quantiles",),
    chart=_scatter,
)
HEADS = MembersFigure(
    name="members_heads",
    title="Which layer and head",
    shows="In how many members each head is the one with the highest score at the end.",
    look_for="Layers differ; within a layer heads are alike before training, so that none should be preferred.",
    needs=("icl",),
    chart=_heads,
)
OVER_MEMBERS: tuple[MembersFigure, ...] = (CURVES, TIMES_FIGURE, HEADS, SCATTER_FIGURE)
