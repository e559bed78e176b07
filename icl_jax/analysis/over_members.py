"""RUN/analysis.zarr of a run with members: how their changes are distributed, and what tells them before.

The change of a member is the largest that `phase_change` found in its ICL score. Times are in training tokens. A member
without a change is censored where it was last looked at, as is the end of a change that still goes on. Heads have no
number that means the same in two members: each member has its own best ones. What is known before is read at the last
probe up to half the time at which the first change of any member begins (`known_tokens`), K-composition at the last
analyzed snapshot: where a change begins a tenth of it is done, and would tell of itself. The mathematics:
`icl_jax.maths.laws`, `icl_jax.maths.survival`, `icl_jax.maths.prediction`.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from icl_jax.analysis.dataset import listing_stamp, save_dataset
from icl_jax.analysis.recorded import recorded_of_members
from icl_jax.config import UserError
from icl_jax.maths import laws
from icl_jax.maths.finding import Finding, find_changes
from icl_jax.maths.prediction import leave_one_out, rank_correlation
from icl_jax.maths.survival import kaplan_meier, quantile_bands
from icl_jax.measures.measurement import Recorded
from icl_jax.measures.phase_change import finding_of
from icl_jax.rundir import SCHEMA_VERSION_MEMBERS, RunDir
from icl_jax.rundir.record import HEAD_SCORES

QUANTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
QUANTITIES = {"start": "tokens", "end": "tokens", "width": "tokens", "size": "nats", "share": "1"}
"""Of a member's largest change, with their units."""
TIMES = ("start", "end")
_ENDS = ("start", "end", "size", "share")
_FAR = 3.5
"""Standard deviations, by the median distance from the median, from which on a member is an outlier."""
_PREDICTORS = {
    "known_loss": "loss of held-out tokens, nats",
    "known_icl": "windowed ICL score, nats",
    "known_previous_token": "previous-token score of the best head",
    "known_prefix_matching": "prefix matching of the best head",
    "known_k_composition": "K-composition, norm over all pairs of heads",
}
Columns = dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]]


def analyze_over_members(run: RunDir, analyses: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """Write RUN/analysis.zarr, from the record and the analyses of members by their numbers, and return it.

    Without analyses the changes are looked for at the live probes alone; without probes, at the snapshots. Raises
    UserError for a run without members, or with neither.
    """
    dataset = over_members(run, analyses)
    save_dataset(dataset, run.path / "analysis.zarr")
    return dataset


def over_members(run: RunDir, analyses: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """What `analyze_over_members` writes."""
    if not run.config.members:
        raise UserError(f"{run.path}: has no members")
    recorded = [_with_points(one, analyses.get(k)) for k, one in enumerate(recorded_of_members(run))]
    probed = [one for one in recorded if one is not None and len(one.probe_tokens)]
    if not probed:
        raise UserError(f"{run.path}: has neither probes nor the ICL score of snapshots to look for changes in")
    findings = [_finding(one, analyses.get(k)) for k, one in enumerate(recorded)]
    columns = {
        **_changes(findings, recorded),
        **_curves(run, recorded, max(probed, key=lambda one: len(one.probe_tokens))),
    }
    seeds, entries = [one.config.train.seed for one in run.each()], run.read_snapshots()
    dataset = xr.Dataset(columns, {
        "member": ("member", np.arange(len(findings)), {"units": "1", "long_name": "number of the member"}),
        "snapshot": ("snapshot", np.array([entry.step for entry in entries]), {"units": "1"}),
        "seed": ("member", np.array(seeds), {"units": "1", "long_name": "train.seed"}),
    })  # fmt: skip
    known: dict[str, Any] = {}
    if np.isfinite(dataset["start"].values).any():
        dataset = dataset.assign(_distribution(dataset))
        dataset = dataset.assign(_known_before(dataset, analyses))
        found, known = _prediction(dataset)
        dataset = dataset.assign(found).assign(_laws(dataset))
    return dataset.assign_attrs(
        schema_version=SCHEMA_VERSION_MEMBERS, run_id=run.run_id, outliers=json.dumps(_outliers(dataset)),
        **known, **listing_stamp(entries),
    )  # fmt: skip


def brief(analysis: xr.Dataset) -> xr.Dataset:
    """What `over_members` reads of the analysis of a member."""
    names = ["k_composition", "icl_windowed", "loss_by_position", *HEAD_SCORES]
    return analysis[[name for name in analysis.data_vars if str(name).startswith("change_") or name in names]].load()


def _with_points(recorded: Recorded | None, analysis: xr.Dataset | None) -> Recorded | None:
    """What was recorded; of a run without probes the same at its snapshots."""
    if recorded is None or len(recorded.probe_tokens) or analysis is None or "icl_windowed" not in analysis:
        return recorded
    loss = analysis["loss_by_position"].mean("position", dtype=np.float64).values
    heads = {score: analysis[score].values for score in HEAD_SCORES if score in analysis}
    return replace(recorded, probe_tokens=analysis["tokens"].values, probe_icl=analysis["icl_windowed"].values,
                   probe_loss=loss, probe_heads=heads)  # fmt: skip


def _finding(recorded: Recorded | None, analysis: xr.Dataset | None) -> Finding:
    if analysis is not None and "change_p" in analysis:
        return finding_of(analysis)
    if recorded is None or not len(recorded.probe_tokens):
        return Finding((), float("nan"))
    return find_changes(recorded.probe_tokens, recorded.probe_icl, schedule=recorded.schedule, direction=-1)


def _column(dims: tuple[str, ...], values: object, units: str, text: str) -> Any:
    return dims, np.asarray(values), {"units": units, "long_name": text}


def _changes(findings: list[Finding], recorded: list[Recorded | None]) -> Columns:
    """The largest change of each member, and where it was last looked at."""
    largest = [finding.largest for finding in findings]
    last = [np.nan if one is None or not len(one.probe_tokens) else one.probe_tokens[-1] for one in recorded]
    columns: Columns = {
        "status": _column(("member",), [finding.status for finding in findings], "1", "found, still going on, none"),
        "p": _column(("member",), [finding.p_value for finding in findings], "1", "p-value of no change"),
        "n_changes": _column(("member",), [len(finding.changes) for finding in findings], "1", "changes found"),
        "last_tokens": _column(("member",), last, "1", "training tokens at the last probe"),
    }
    for name, units in QUANTITIES.items():
        values = [np.nan if change is None else getattr(change, name) for change in largest]
        columns[name] = _column(
            ("member",), values, "1" if units == "tokens" else units, f"{name} of its largest change"
        )
        if name in _ENDS:
            intervals = [
                (np.nan, np.nan) if change is None else getattr(change, f"{name}_interval") for change in largest
            ]
            columns[f"{name}_interval"] = _column(
                ("member", "bound"), intervals, columns[name][2]["units"], f"90 % interval of {name}"
            )
    return columns


def _curves(run: RunDir, recorded: list[Recorded | None], longest: Recorded) -> Columns:
    """Curves at the probes, NaN from where a member failed, and each one's best heads at its last probe."""
    n_probes, n = len(longest.probe_tokens), len(recorded)
    columns: Columns = {"probe_tokens": _column(("probe",), longest.probe_tokens, "1", "training tokens at the probe")}

    def stacked(of: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
        found = np.full((n, n_probes, *shape), np.nan, np.float32)
        for k, one in enumerate(recorded):
            if one is not None and len(one.probe_tokens):
                found[k, : len(one.probe_tokens)] = of(one)
        return found

    of_probes = ("member", "probe")
    columns["icl"] = _column(of_probes, stacked(lambda one: one.probe_icl), "nats", "windowed ICL score")
    columns["loss"] = _column(of_probes, stacked(lambda one: one.probe_loss), "nats", "mean loss of held-out tokens")
    shape = (run.config.model.n_layers, run.config.model.n_heads)
    for score in HEAD_SCORES:
        if not all(score in one.probe_heads for one in recorded if one is not None and len(one.probe_tokens)):
            continue
        values = stacked(lambda one, score=score: one.probe_heads[score], shape)
        columns[score] = _column((*of_probes, "layer", "head"), values, "1", f"{score.replace('_', ' ')}, [0, 1]")
        last = [0 if one is None else max(len(one.probe_tokens) - 1, 0) for one in recorded]
        at_end = values[np.arange(n), last].reshape(n, -1)
        best = np.nan_to_num(at_end, nan=-1.0).argmax(axis=1)
        layers, heads = np.unravel_index(best, shape)
        name = {"prefix_matching": "induction", "previous_token": "previous"}[score]
        columns |= {
            f"{name}_layer": _column(
                ("member",), layers, "1", f"layer of the head with the highest {score} at the end"
            ),
            f"{name}_head": _column(("member",), heads, "1", "its number within the layer"),
            f"{name}_score": _column(("member",), at_end[np.arange(n), best], "1", f"its {score} at the end, [0, 1]"),
        }
    return columns


def times_of(dataset: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Times, and whether each was seen; if not, where the member was last looked at, if ever.

    What was over at the first probe counts half a probe after it: laws of times have none at 0.
    """
    values, last, tokens = (dataset[one].values for one in (name, "last_tokens", "probe_tokens"))
    is_seen = np.isfinite(values)
    first = np.min(tokens[tokens > 0], initial=np.nanmax(last)) / 2
    times = np.maximum(np.where(is_seen, values, last), first)
    is_known = np.isfinite(times)
    return times[is_known], is_seen[is_known]


def _distribution(dataset: xr.Dataset) -> Columns:
    columns: Columns = {"quantile": _column(("quantile",), QUANTILES, "1", "share of members")}
    for name in QUANTITIES:
        if name in TIMES:
            times, is_seen = times_of(dataset, name)
            curve = kaplan_meier(times, is_seen)
            dim = f"{name}_event"
            for part, text in zip(
                curve._fields, ("time of a change", "not yet changed", "95 %, low", "95 %, high"), strict=True
            ):
                columns[f"{name}_survival_{part}"] = _column((dim,), getattr(curve, part), "1", f"{name}: {text}")
        else:
            values = dataset[name].values
            times = values[np.isfinite(values)]
            is_seen = np.ones(len(times), bool)
        if len(times):
            found = quantile_bands(times, is_seen, QUANTILES)
            for part, values in zip(("quantiles", "quantiles_low", "quantiles_high"), found, strict=True):
                columns[f"{name}_{part}"] = _column(
                    ("quantile",), values, dataset[name].attrs["units"], f"{name}, over members"
                )
    return columns


def _known_before(dataset: xr.Dataset, analyses: Mapping[int, xr.Dataset]) -> Columns:
    """What each member was at the last probe of the first half of the time until any change begins."""
    tokens = dataset["probe_tokens"].values
    half = float(np.nanmin(dataset["start"].values)) / 2
    at = max(int(np.searchsorted(tokens, half, side="right")) - 1, 0)
    columns: Columns = {"known_tokens": _column((), tokens[at], "1", "where what is known before is read")}
    for name, of in (("known_loss", "loss"), ("known_icl", "icl")):
        columns[name] = _column(("member",), dataset[of].values[:, at], "nats", _PREDICTORS[name])
    for score in HEAD_SCORES:
        if score in dataset:
            best = dataset[score].values[:, at].max(axis=(1, 2))
            columns[f"known_{score}"] = _column(("member",), best, "1", _PREDICTORS[f"known_{score}"])
    norms = np.full(dataset.sizes["member"], np.nan)
    for k, analysis in analyses.items():
        before = np.flatnonzero(analysis["tokens"].values <= half)
        if "k_composition" in analysis and len(before):
            norms[k] = np.sqrt(np.nansum(analysis["k_composition"].values[before[-1]] ** 2))
    if np.isfinite(norms).any() and np.nanmax(norms) > 0:
        columns["known_k_composition"] = _column(("member",), norms, "1", _PREDICTORS["known_k_composition"])
    return columns


def _prediction(dataset: xr.Dataset) -> tuple[Columns, dict[str, float]]:
    """How the start goes with each number that is known before, and how well all of them tell it."""
    names = [name for name in _PREDICTORS if name in dataset]
    y = dataset["start"].values
    table = np.column_stack([dataset[name].values for name in names]).astype(np.float64)
    is_known = np.isfinite(y) & np.isfinite(table).all(axis=1)
    found = [rank_correlation(column, y[is_known]) for column in table[is_known].T]
    columns: Columns = {"predictor": _column(("predictor",), names, "1", "known before the first change")}
    for part, text in (("rho", "rank correlation with the start"), ("low", "95 %, low"), ("high", "95 %, high"),
                       ("p_value", "p-value by permutation")):  # fmt: skip
        columns[f"predictor_{part}"] = _column(("predictor",), [getattr(one, part) for one in found], "1", text)
    prediction = leave_one_out(table[is_known], y[is_known])
    return columns, {
        "predicted_r2": prediction.r2,
        "predicted_p": prediction.p_value,
        "predicted_n": int(is_known.sum()),
    }


def _laws(dataset: xr.Dataset) -> Columns:
    shape = (len(TIMES), len(laws.LAWS))
    found = {part: np.full(shape, np.nan) for part in ("aic", "distance", "p_value")}
    parameters = np.full((*shape, 2), np.nan)
    for i, name in enumerate(TIMES):
        times, is_seen = times_of(dataset, name)
        if is_seen.sum() < laws.FEWEST or np.ptp(times[is_seen]) == 0:
            continue
        for j, law in enumerate(laws.LAWS):
            fit = laws.fit(law, times, is_seen)
            parameters[i, j] = fit.parameters
            found["aic"][i, j], found["distance"][i, j] = fit.aic, fit.distance
            found["p_value"][i, j] = laws.fit_p_value(law, fit, times, is_seen)
    dims = ("time", "law")
    texts = {
        "aic": "Akaike's criterion: the lowest is the likeliest",
        "distance": "largest distance from the Kaplan-Meier curve",
        "p_value": "chance of such a distance were it this law",
    }
    return {
        "time": _column(("time",), list(TIMES), "1", "of a change"),
        "law": _column(("law",), list(laws.LAWS), "1", "law of times"),
        **{f"law_{part}": _column(dims, values, "1", texts[part]) for part, values in found.items()},
        "law_parameters": _column((*dims, "parameter"), parameters, "1", "the two parameters of each law"),
    }


def _outliers(dataset: xr.Dataset) -> list[dict[str, object]]:
    """Members whose change is far from the others', and those that have none where most have, each with its reasons."""
    found: dict[int, list[str]] = {}
    status = dataset["status"].values
    has_none = np.isin(status, ["none", "too few points"])
    if 0 < has_none.sum() < len(status) / 2:
        for k in np.flatnonzero(has_none):
            found.setdefault(int(k), []).append(f"{status[k]}, as of {has_none.sum()} of {len(status)}")
    for name in QUANTITIES:
        values = dataset[name].values.astype(np.float64)
        finite = np.isfinite(values)
        if finite.sum() < laws.FEWEST:
            continue
        middle = float(np.median(values[finite]))
        spread = 1.4826 * float(np.median(np.abs(values[finite] - middle)))
        if not spread:
            continue
        for k in np.flatnonzero(finite):
            far = (values[k] - middle) / spread
            if abs(far) > _FAR:
                found.setdefault(int(k), []).append(
                    f"{name} {values[k]:.3g}, {far:+.1f} deviations from the median {middle:.3g}"
                )
    return [
        {"member": k, "seed": int(dataset["seed"].values[k]), "why": "; ".join(why)} for k, why in sorted(found.items())
    ]
