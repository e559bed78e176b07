"""What interventions in training do to the change of the same run without them, seed by seed.

The curve is what training itself saw, interventions and all, in blocks of steps: the windowed ICL score of the losses,
or, of a run that trains on the end of its rows, the loss there. A condition is held against the run of the same config
with the fewest of its interventions: the one without any, or, where every condition has one in common, that one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from icl_jax.config import Config
from icl_jax.config.interventions import Intervention
from icl_jax.config.sameness import experiment
from icl_jax.config.tables import flat
from icl_jax.maths.finding import find_changes
from icl_jax.maths.icl_score import icl_windowed
from icl_jax.maths.survival import quantile_bands
from icl_jax.report.seeds import interval
from icl_jax.rundir import RunDir
from icl_jax.rundir.intervened import first_seen, induction_heads

N_BLOCKS = 60
"""Points of a curve."""
_LAST = 0.1
"""Part of the run that its end is the mean of."""
_ANYWHERE = ("train.n_steps", "snapshots.", "probes.", "members.", "optimizer.schedule_steps", "intervene")
"""Fields in which a condition and what it is held against may differ."""


@dataclass(frozen=True, slots=True)
class Seed:
    """One seed under one condition; times in training tokens, values in nats. NaN where there is none."""

    run: str
    title: str
    against: str
    """Name of the run that it is held against; of that run itself, empty."""
    seed: int
    status: str
    """As the detector of changes has it."""
    start: float
    end: float
    size: float
    half: float
    """When the curve is half way down the change of the run that it is held against; inf where it never is."""
    begin: float
    """Mean of the first tenth."""
    last: float
    """Mean of the last tenth of the run."""
    tokens: float
    """At the end of the run."""


class _Curves(NamedTuple):
    tokens: np.ndarray
    """[block]"""
    values: np.ndarray
    """[member, block]"""
    schedule: tuple[np.ndarray, np.ndarray]


def _curves(run: RunDir) -> _Curves:
    record, config = run.load_record(), run.config
    loss = record["loss"].transpose("member", "step", "position").values.astype(np.float64)
    first = config.train.loss_from
    of_steps = loss[..., first:].mean(axis=-1) if first else icl_windowed(loss)
    tokens = record["tokens"].values.astype(np.float64)
    cuts = np.unique(np.linspace(0, len(tokens), min(N_BLOCKS, len(tokens)) + 1).astype(int))[:-1]
    n_each = np.diff([*cuts, len(tokens)])
    lr = record["lr"]
    return _Curves(
        np.add.reduceat(tokens, cuts) / n_each, np.add.reduceat(of_steps, cuts, axis=1) / n_each,
        (tokens, (lr.isel(member=0) if "member" in lr.dims else lr).values),
    )  # fmt: skip


def _fixed(config: Config) -> tuple[tuple[str, Any], ...]:
    fields = flat(experiment(config))
    return tuple((name, value) for name, value in sorted(fields.items()) if not name.startswith(_ANYWHERE))


def base_of(config: Config, others: Sequence[Config]) -> int | None:
    """Which of the other configs it is held against; None where there is none. Configs without members."""

    def fits(other: Config) -> bool:
        left: list[Intervention] = list(config.intervene)
        for one in other.intervene:
            if one not in left:
                return False
            left.remove(one)
        return bool(left) and _fixed(other) == _fixed(config)

    found = [i for i, other in enumerate(others) if fits(other)]
    # One intervention before none: what every condition has in common is not what is asked about.
    in_common = [i for i in found if others[i].intervene] or found
    return min(in_common, key=lambda i: len(others[i].intervene), default=None)


def seeds_of(runs: Sequence[RunDir], titles: Sequence[str]) -> list[Seed]:
    """Every seed of runs with members of which some have interventions and a run to be held against.

    Runs without either are left out. Raises UserError for a damaged record.
    """
    configs = [run.config.member(0) for run in runs]
    bases = [base_of(config, configs) for config in configs]
    wanted = sorted({i for i, base in enumerate(bases) if base is not None} | {b for b in bases if b is not None})
    curves = {i: _curves(runs[i]) for i in wanted}
    findings = {
        i: [find_changes(own.tokens, curve, schedule=own.schedule, direction=-1) for curve in own.values]
        for i, own in curves.items()
    }
    found = []
    for i in wanted:
        own, base = curves[i], bases[i]
        level = _half_way(curves[i if base is None else base], findings[i if base is None else base])
        n_end = max(1, round(_LAST * len(own.tokens)))
        for k, (curve, finding) in enumerate(zip(own.values, findings[i], strict=True)):
            change = finding.largest
            numbers = (np.nan,) * 3 if change is None else (change.start, change.end, change.size)
            found.append(Seed(
                runs[i].path.name, titles[i], "" if base is None else runs[base].path.name,
                runs[i].config.member(k).train.seed, finding.status, *numbers, _first_below(own.tokens, curve, level),
                float(curve[:n_end].mean()), float(curve[-n_end:].mean()), float(own.schedule[0][-1]),
            ))  # fmt: skip
    return found


def _first_below(tokens: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Tokens at which the curve first is at the level; inf where it never is, NaN where there is no level."""
    if not np.isfinite(level):
        return float("nan")
    below = np.flatnonzero(curve <= level)
    if not len(below):
        return float("inf")
    two = slice(max(below[0] - 1, 0), below[0] + 1)
    return float(np.interp(-level, -curve[two], tokens[two]))


def _half_way(own: _Curves, findings: Sequence[Any]) -> float:
    """Median over seeds of the value half way through the change; NaN where none has one that has ended."""
    found = []
    for curve, finding in zip(own.values, findings, strict=True):
        change = finding.largest
        if change is not None and not change.is_open:
            ends = np.interp([change.start, change.end], own.tokens, curve)
            found.append(float(ends.mean()))
    return float(np.median(found)) if found else float("nan")


def causes_rows(seeds: Sequence[Seed]) -> tuple[list[str], list[list[str]]]:
    """A row for each condition: its changes, when, where it ends, and that against the run it is held against."""
    header = [
        "", "changes", "start, M tokens", "end, M tokens", "half way, M tokens", "times as late", "at the end, nats",
        "against it, nats",
    ]  # fmt: skip
    by_run: dict[str, list[Seed]] = {}
    for seed in seeds:
        by_run.setdefault(seed.run, []).append(seed)
    rows = []
    for each in by_run.values():
        base = {one.seed: one for one in by_run.get(each[0].against, [])}
        pairs = [(one, base[one.seed]) for one in each if one.seed in base]
        n = len(each)
        n_open = sum(one.status == "still going on" for one in each)
        changes = f"{sum(one.status == 'found' for one in each)} of {n}" + (f", {n_open} going on" if n_open else "")
        rows.append([
            each[0].title, changes, *(_time(each, name) for name in ("start", "end", "half")),
            _ratio(pairs) if pairs else "", _mean([one.last for one in each]),
            _mean([one.last - other.last for one, other in pairs], sign="+") if pairs else "",
        ])  # fmt: skip
    return header, rows


def _time(seeds: Sequence[Seed], name: str) -> str:
    """Median over seeds, those that never come counted where they were last looked at, with its interval."""
    times = np.array([getattr(seed, name) for seed in seeds])
    happened = np.isfinite(times)
    if not happened.any():
        return "none found" if name != "half" else "never"
    ends = np.array([seed.tokens for seed in seeds])
    middle, low, high = (
        float(x[0]) for x in quantile_bands(np.where(happened, times, ends), happened, np.array([0.5]))
    )
    words = [f"{x / 1e6:.3g}" if np.isfinite(x) else "later" for x in (middle, low, high)]
    return f"{words[0]} ({words[1]} to {words[2]})"


def _ratio(pairs: Sequence[tuple[Seed, Seed]]) -> str:
    """Geometric mean over seeds of the times half way, as parts of those it is held against; 95 % by Student's t."""
    known = [(one.half, other.half) for one, other in pairs if np.isfinite(one.half) and np.isfinite(other.half)]
    if len(known) < 2:
        return "never" if not known else f"{known[0][0] / known[0][1]:.2f}"
    mean, half = interval(np.log([one / other for one, other in known]))
    assert half is not None
    ends = np.exp([mean, mean - half, mean + half])
    few = "" if len(known) == len(pairs) else f", {len(known)} of {len(pairs)}"
    return f"{ends[0]:.2f} ({ends[1]:.2f} to {ends[2]:.2f}){few}"


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean, half = interval(np.array(values))
    if half is None:
        return f"{mean:{sign}.2f}"
    return f"{mean:{sign}.2f} ({mean - half:{sign}.2f} to {mean + half:{sign}.2f})"


@dataclass(frozen=True, slots=True)
class Replaced:
    """What happened after the induction heads of one seed were removed the moment they formed."""

    run: str
    seed: int
    at: float
    """Training tokens at the probe that saw them; NaN where none formed."""
    n_removed: int
    n_new: int
    """Heads that reached the threshold after that probe."""
    first_new: float
    """Training tokens at the probe that saw the first of them; inf where none did."""
    n_same_layer: int
    """Of those, how many are in a layer that heads were removed from."""
    before: float
    """The curve just before, just after, and at the end."""
    after: float
    last: float


def replaced(run: RunDir) -> list[Replaced]:
    """Of a run whose heads that have formed are taken away from then on, seed by seed."""
    record, curves = run.load_record(), _curves(run)
    scores = record["prefix_matching"].transpose("member", "probe", "layer", "head").values
    steps, tokens = record["probe_step"].values, record["probe_tokens"].values.astype(np.float64)
    found = []
    for k, (score, curve) in enumerate(zip(scores, curves.values, strict=True)):
        seed, n_end = run.config.member(k).train.seed, max(1, round(_LAST * len(curve)))
        first = first_seen(steps, score)
        if first is None:
            nothing = (np.nan, 0, 0, np.inf, 0, np.nan, np.nan, float(curve[-n_end:].mean()))
            found.append(Replaced(run.path.name, seed, *nothing))
            continue
        step, removed = first
        at = int(np.flatnonzero(steps == step)[0])
        new = [induction_heads(one) & ~removed for one in score[at + 1 :]]
        come = np.any(new, axis=0) if new else np.zeros_like(removed)
        when = next((float(tokens[at + 1 + i]) for i, one in enumerate(new) if one.any()), np.inf)
        i = int(np.searchsorted(curves.tokens, tokens[at]))
        found.append(Replaced(
            run.path.name, seed, float(tokens[at]), int(removed.sum()), int(come.sum()), when,
            int(come[removed.any(axis=1)].sum()), float(curve[max(i - 1, 0)]), float(curve[min(i + 1, len(curve) - 1)]),
            float(curve[-n_end:].mean()),
        ))  # fmt: skip
    return found


def as_row(one: Any) -> dict[str, str]:
    """Fields of a dataclass as text, numbers with six digits."""
    return {name: f"{x:.6g}" if isinstance(x, float) else str(x) for name, x in asdict(one).items()}
