"""What would have shown a claim false, and whether these runs contain it: the controls of each of the six arguments.

One line each: what it is, and what these runs say to it, or "not tested".
"""

from collections.abc import Callable

import numpy as np

from icl_jax.config import rows_of
from icl_jax.data.corpora.repeats import RepeatsOptions
from icl_jax.report.figures.smeared_against_plain import smeared_pairs
from icl_jax.report.reported_run import ReportedRun, share, signed

_NO_REPEATS = 1e-3
"""Probability of a phrase from which down a corpus counts as one without repeats."""
_NOT_TESTED = "not tested"
Controls = Callable[[list[ReportedRun]], list[str]]


def _line(what: str, found: list[str]) -> str:
    return f"{what}: {'; '.join(found) or _NOT_TESTED}"


def forming(runs: list[ReportedRun]) -> list[ReportedRun]:
    return [run for run in runs if run.forms_induction]


def without_heads(runs: list[ReportedRun]) -> list[ReportedRun]:
    """Runs that form no induction head, on the data of runs that do."""
    data = [rows_of(run.config) for run in forming(runs)]
    return [run for run in runs if run.forms_induction is False and rows_of(run.config) in data]


def _untrained(runs: list[ReportedRun], variable: str, text: str) -> str:
    """The highest value of a head of the models before their first step."""
    first = {
        run.name: float(np.nanmax(run.data[variable].values[0]))
        for run in forming(runs)
        if run.has(variable) and run.data["snapshot"].values[0] == 0
    }
    return _line(f"untrained weights, {text}", [f"{name} {share(value)}" for name, value in first.items()])


def _co_occurrence(runs: list[ReportedRun]) -> list[str]:
    controls = [f"{run.name}, {run.size}: {run.phase_words}" for run in without_heads(runs)]
    return [
        _line("models without induction heads on the same data", controls),
        _untrained(runs, "prefix_matching", "best prefix matching"),
        _shuffled(runs),
        _line("a corpus without repeats", [f"{run.name}: {run.phase_words}" for run in _without_repeats(runs)]),
    ]


def _shuffled(runs: list[ReportedRun]) -> str:
    """The score at the end of runs that form heads, where the tokens of each row stand in random order."""
    found = [
        f"{run.name} {signed(float(run.last('shuffled_icl')))} ± {share(float(run.last('shuffled_icl_sem')))} nats in "
        f"place of {signed(float(run.last('icl_windowed')))}"
        for run in forming(runs)
        if run.has("shuffled_icl", "icl_windowed")
    ]
    return _line("shuffled contexts", found)


def _without_repeats(runs: list[ReportedRun]) -> list[ReportedRun]:
    """Runs on random phrases of which next to none is said, beside runs that form heads where they are."""

    def prob(run: ReportedRun) -> float:
        data = run.config.data
        return data.options_of(RepeatsOptions).phrase_prob if data.source == "repeats" else 1.0

    has_repeats = any(run.config.data.source == "repeats" and prob(run) > _NO_REPEATS for run in forming(runs))
    return [run for run in runs if prob(run) <= _NO_REPEATS] if has_repeats else []


def _co_perturbation(runs: list[ReportedRun]) -> list[str]:
    pairs = smeared_pairs(runs)
    seeds = [f"{min(len(smeared.runs), len(plain.runs))} of {smeared.name}" for smeared, plain in pairs]
    return [
        _line("the same model without smeared keys", [plain.name for _, plain in pairs]),
        _line("other seeds, of each at least", seeds if any(not text.startswith("1 ") for text in seeds) else []),
        _line("heads that are given another way", []),
    ]


def _ablation(runs: list[ReportedRun]) -> list[str]:
    icl = "pattern_preserving_icl_effect"
    others = []
    for run in forming(runs):
        induction = run.heads_of("induction")
        layers = {layer for layer, _ in induction}
        matched = [head for head in run.heads if head not in induction and head[0] in layers]
        if run.window is not None and run.has(icl) and matched:
            cost = max(float(run.at(icl, run.window[1])[head]) for head in matched)
            others.append(f"{run.name}: {len(matched)}, the costliest {signed(cost)} nats of ICL score")
    return [
        _line("other heads of the same layers", others),
        _line("all induction heads at once, and as many others of the same layers, drawn three times", _sets(runs)),
        _line("the same ablation before the change, one head at a time", _before(runs)),
    ]


def _sets(runs: list[ReportedRun]) -> list[str]:
    needs = ("set_icl_effect", "random_set_icl_effect")
    found = []
    for run in forming(runs):
        if not run.has(*needs) or np.isnan(run.last(needs[0])):
            continue
        effect, error, n = (float(run.last(name)) for name in (needs[0], "set_icl_effect_sem", "set_n"))
        others, n_others = run.last(needs[1]), int(run.last("random_set_n"))
        drawn = f"{n_others} others {signed(np.min(others))} to {signed(np.max(others))}" if n_others else "no others"
        found.append(f"{run.name}: {n:.0f} cost {signed(effect)} ± {share(error)} nats of ICL score, {drawn}")
    return found


def _before(runs: list[ReportedRun]) -> list[str]:
    icl = "pattern_preserving_icl_effect"
    found = []
    for run in forming(runs):
        if run.window is not None and run.has(icl):
            means = [np.mean([run.at(icl, step)[head] for head in run.heads_of("induction")]) for step in run.window]
            found.append(f"{run.name}: {signed(means[0])} before, {signed(means[1])} nats of ICL score after")
    return found


def _generality(runs: list[ReportedRun]) -> list[str]:
    labelled = [run for run in without_heads(runs) if run.has("label_prob")]
    return [_line("models without such heads on the same data", [run.name for run in labelled])]


def _mechanism(runs: list[ReportedRun]) -> list[str]:
    composed = [run.name for run in forming(runs) if run.has("k_composition_z")]
    return [
        _line("random heads, whose composition has a standard deviation of 1", composed),
        _untrained(runs, "copying_eigenvalue", "best copying score"),
    ]


def _continuity(runs: list[ReportedRun]) -> list[str]:
    return [_line("models that form no induction heads on the same data", [run.name for run in without_heads(runs)])]


CONTROLS: dict[str, Controls] = {
    "1": _co_occurrence, "2": _co_perturbation, "3": _ablation, "4": _generality, "5": _mechanism, "6": _continuity,
}  # fmt: skip
"""By the number of the argument."""
