"""Runs with members that differ in one field from the first of them: axes along which heads form sooner or later.

When: at the live probes, where the best head's prefix matching first reaches the threshold of an induction head,
between two probes on the line between them. (The detector of abrupt changes asks for more than that a head has formed:
that no smooth curve does the same.) How long a run is, and where it is looked at, makes no other axis: what lies beyond
a run's end is censored there. So a run should have a learning rate that does not depend on its length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from icl_jax.config import Config
from icl_jax.config.sameness import experiment
from icl_jax.config.tables import flat
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.maths.power_law import PowerLaw, fit_power_law
from icl_jax.report.figures.over_members import ReportedMembers

REPEATS = "data.repeats.phrase_prob"
_LABELS = {
    "train.batch_size": "rows a batch",
    "model.n_ctx": "positions a row",
    REPEATS: "share of held-out tokens that a phrase says again",
    "model.vocab_size": "token ids",
    "optimizer.lr": "learning rate",
}
_NO_AXIS = ("train.n_steps", "snapshots.", "probes.", "members.", "optimizer.schedule_steps")
_PER_STEP = ("train.batch_size", "model.n_ctx")
"""Fields that a step's tokens are proportional to: an exponent in steps is one less than that in tokens."""


@dataclass(frozen=True, slots=True)
class Varied:
    """Members of several runs that differ in one field, and when an induction head of each has formed."""

    field: str
    values: np.ndarray
    """[member]"""
    tokens: np.ndarray
    """[member] at which a head has formed, or where the member was last looked at."""
    has_formed: np.ndarray
    names: tuple[str, ...] = ()
    """Of the values 0, 1, ..., where they are no numbers."""
    note: str = ""
    """Which values are left out."""

    @property
    def label(self) -> str:
        """The field in words."""
        return _LABELS.get(self.field, self.field)

    @property
    def law(self) -> PowerLaw | None:
        """Of the tokens; None for names, and where heads formed at fewer than two values."""
        if self.names or len(np.unique(self.values[self.has_formed])) < 2:
            return None
        return fit_power_law(self.values, self.tokens, self.has_formed)

    @property
    def where_any_formed(self) -> "tuple[Varied, ...]":
        """The same without values at which no head formed, if there are any: the early end need not be why."""
        held = np.isin(self.values, self.values[self.has_formed])
        left_out = ", ".join(f"{value:.3g}" for value in np.unique(self.values[~held]))
        if not left_out or len(np.unique(self.values[held])) < 3:
            return ()
        values, tokens, has_formed = self.values[held], self.tokens[held], self.has_formed[held]
        return (Varied(self.field, values, tokens, has_formed, self.names, f", without {left_out}"),)

    @property
    def per_step(self) -> int:
        """What the exponent in steps is less by than that in tokens."""
        return int(self.field in _PER_STEP)


def axes_of(members: Sequence[ReportedMembers]) -> list[Varied]:
    """An axis for each field with three values or more; of names, with two. The first run stands on all of them."""
    if not members or members[0].config is None:
        return []
    base = _own(members[0].config.member(0))
    points: dict[str, list[tuple[Any, float, bool]]] = {}
    on_all: list[tuple[float, float, bool]] = []
    for run in members:
        if run.config is None or "prefix_matching" not in run.data:
            continue
        tokens, has_formed = formed(run)
        for k in np.flatnonzero(np.isfinite(tokens)).tolist():
            own = _own(run.config.member(k))
            differing = [name for name in own if own[name] != base.get(name)]
            point = (float(tokens[k]), bool(has_formed[k]))
            if not differing:
                on_all.append((run.repeated, *point))
            elif "optimizer.name" in differing:
                also = [f"{name.rpartition('.')[2]} {own[name]:g}" for name in differing if name != "optimizer.name"]
                points.setdefault("optimizer.name", []).append((", ".join([own["optimizer.name"], *also]), *point))
            elif len(differing) == 1 and isinstance(own[differing[0]], int | float):
                value = run.repeated if differing[0] == REPEATS else float(own[differing[0]])
                points.setdefault(differing[0], []).append((value, *point))
    found = []
    for field, others in points.items():
        of_base = [(repeated if field == REPEATS else base[field], *rest) for repeated, *rest in on_all]
        values = [value for value, _, _ in [*of_base, *others]]
        names = tuple(dict.fromkeys(map(str, values))) if field == "optimizer.name" else ()
        if len(set(values)) >= (2 if names else 3):
            places = np.array([names.index(value) for value in values] if names else values, np.float64)
            times = np.array([tokens for _, tokens, _ in [*of_base, *others]])
            found.append(Varied(field, places, times, np.array([seen for *_, seen in [*of_base, *others]]), names))
    return found


def formed(run: ReportedMembers) -> tuple[np.ndarray, np.ndarray]:
    """[member] training tokens at which the best head has come to the threshold, or of the last probe; whether it has.

    NaN for a member without a probe.
    """
    tokens = run.data["probe_tokens"].values.astype(np.float64)
    best = run.data["prefix_matching"].max(("layer", "head")).values
    times, has_formed = np.full(len(best), np.nan), np.zeros(len(best), bool)
    for k, curve in enumerate(best):
        there = np.flatnonzero(np.isfinite(curve))
        above = np.flatnonzero(np.nan_to_num(curve) >= HEAD_THRESHOLD)
        if len(above) and above[0] > 0:
            at = slice(above[0] - 1, above[0] + 1)
            times[k], has_formed[k] = np.interp(HEAD_THRESHOLD, curve[at], tokens[at]), True
        elif len(there) and tokens[there[-1]] > 0 and not len(above):
            times[k] = tokens[there[-1]]
    return times, has_formed


def _own(config: Config) -> dict[str, Any]:
    fields = flat(experiment(config))
    return {name: value for name, value in fields.items() if not name.startswith(_NO_AXIS)}


def laws_rows(axes: Sequence[Varied]) -> tuple[list[str], list[list[str]]]:
    """A row for each axis: what is varied, the law in tokens and in steps, its test, and what was censored."""
    header = ["", "values", "exponent, tokens", "exponent, steps", "a power law? p", "seeds", "censored"]
    rows = []
    for axis in [part for whole in axes if not whole.names for part in (whole, *whole.where_any_formed)]:
        levels = np.unique(axis.values)
        censored = [
            f"{n} at {level:.3g}" for level in levels if (n := int(np.sum(~axis.has_formed & (axis.values == level))))
        ]
        law, exponents, p = axis.law, ["", ""], ""
        if law is not None:
            ends = [[one - less for one in (law.exponent, law.low, law.high)] for less in (0, axis.per_step)]
            exponents = [f"{middle:+.2f} ({low:+.2f} to {high:+.2f})" for middle, low, high in ends]
            p = "" if np.isnan(law.p_value) else f"{law.p_value:.2g}"
        values = ", ".join(f"{level:.3g}" for level in levels)
        rows.append(
            [axis.label + axis.note, values, *exponents, p, str(len(axis.values)), ", ".join(censored) or "none"]
        )
    return header, rows
