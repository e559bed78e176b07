"""The six arguments of "In-context Learning and Induction Heads": what the runs of a report say to each.

Every verdict is computed from the numbers in analysis.zarr by the rule in its function, and says what it rests on. What
was measured and is not so, and what was not measured, are different answers: the second names what, and of which runs.
Rules and thresholds are ours; the paper grades its evidence in words, which stand beside.
Source: Olsson et al. 2022, "Summary of evidence".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from icl_jax.config import rows_of
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.report.behaviours import behaviours
from icl_jax.report.changes import window_words
from icl_jax.report.controls import CONTROLS, without_heads
from icl_jax.report.figures.seen_bigrams import set_costs
from icl_jax.report.figures.smeared_against_plain import NEEDS_PAIR, smeared_pairs
from icl_jax.report.reported_run import HAS_LABEL, ReportedRun, share, signed
from icl_jax.report.seeds import Group

Finding = Literal["supported", "partly", "not supported", "not tested"]

# Of the best head's score over a whole run, the part that must form inside the changes of the ICL score.
_MOST = 0.5
# Share of the phase change that the induction heads must undo when ablated, as a mean over them.
_UNDOES = 0.1
# Standard deviations above random heads.
_COMPOSES = 3.0
_MIN_SIZES = 3
_FORMS_NONE = "no run ends with an induction head"
_WORDS = {
    "copying_eigenvalue": "the copying scores", "icl_windowed": "the ICL scores",
    "k_composition_z": "the K-composition scores", "label_matching": "the heads' attention by label",
    "label_prob": "the losses by label",
    "pattern_preserving_along_change": "the ablations", "pattern_preserving_icl_effect": "the ablations",
    "change_p": "the phase changes", "step_after": "the phase changes",
    "prefix_matching": "the head scores", "previous_token": "the head scores", "qk_trace": "the QK traces",
    "qk_trace_ratio": "the QK traces",
}  # fmt: skip
"""What the variables are that verdicts rest on."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table."""

    argument: str
    claim: str
    paper: str
    """How strong the paper itself calls it, for small attention-only models where it tells them apart."""
    finding: Finding
    effect: list[str]
    """The numbers that it rests on, a line each; empty where nothing was measured."""
    limits: str
    """What these runs leave open."""
    controls: list[str]
    """What would have shown it false, a line each, and what these runs say to it, or that it is not tested."""


def verdicts(runs: list[ReportedRun]) -> list[Verdict]:
    """All six, in the paper's order."""
    rows: list[tuple[str, str, str, Callable[[list[ReportedRun]], tuple[Finding, list[str], str]]]] = [
        ("1 Co-occurrence", "Induction heads form when in-context learning improves abruptly.",
         "medium, correlational", co_occurrence),
        ("2 Co-perturbation", "A change that lets induction heads form sooner moves the improvement with them.",
         "medium, interventional", co_perturbation),
        ("3 Ablation", "Taking induction heads away takes in-context learning away.", "strong, causal", ablation),
        ("4 Generality", "Heads that copy literally also do more abstract in-context learning.",
         "plausibility, large models only", generality),
        ("5 Mechanism", "The weights of these heads implement induction.", "strong for some of it, mechanistic",
         mechanism),
        ("6 Continuity", "What holds in small models holds in larger ones.", "analogy", continuity),
    ]  # fmt: skip
    return [
        Verdict(argument, claim, paper, *find(runs), CONTROLS[argument[0]](runs))
        for argument, claim, paper, find in rows
    ]


def _untaken(runs: list[ReportedRun], *variables: str) -> str:
    """In words: what of these variables was not measured, of which runs; empty where all was that the models have."""
    lacking: dict[str, list[str]] = {}
    for run in runs:
        for what in dict.fromkeys(_WORDS[name] for name in run.not_taken(*variables)):
            lacking.setdefault(what, []).append(run.name)
    parts = [what if len(names) == len(runs) else f"{what} of {', '.join(names)}" for what, names in lacking.items()]
    return f"{' and '.join(parts)} were not taken (icl-jax analyze RUN)" if parts else ""


def _limits(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _may_form(runs: list[ReportedRun]) -> list[ReportedRun]:
    """Without the runs that are known to end without an induction head."""
    return [run for run in runs if run.forms_induction is not False]


def co_occurrence(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Supported: the ICL score changes abruptly, the best head forms mostly then, and controls on the same data do not.

    A change is what `phase_change` finds: a score that falls smoothly has none, however far it falls.
    """
    needed = ("prefix_matching", "change_p", "icl_windowed")
    untaken = _untaken(runs, *needed)
    measured = [run for run in runs if not run.not_taken(*needed)]
    forming = [run for run in measured if run.forms_induction]
    if not forming:
        return "not tested", [], untaken or _FORMS_NONE
    shares = [_share_of_head(run) for run in forming]
    effect = [
        f"{run.name}: {run.phase_words}"
        + (f"; {100 * part:.0f} % of the best head formed in it" if _changes(run) else "")
        for run, part in zip(forming, shares, strict=True)
    ]
    controls = [run for run in without_heads(measured) if _has_curve(run)]
    effect += [f"{run.name}, without induction heads: {run.phase_words}" for run in controls]
    limits = _limits("a correlation only", untaken)
    together = [_changes(run) and part >= _MOST for run, part in zip(forming, shares, strict=True) if _has_curve(run)]
    if not together:
        return "not tested", effect, _limits(untaken, "takes eight snapshots or more")
    if not all(together):
        return "partly" if any(together) else "not supported", effect, limits
    if not controls:
        return "partly", effect, _limits(limits, "needs a run on the same data that forms no induction heads")
    return "partly" if any(_changes(run) for run in controls) else "supported", effect, limits


def _has_curve(run: ReportedRun) -> bool:
    """Whether it has points enough to tell a change from none: a single imported checkpoint has not."""
    return run.phase is not None and run.phase.status != "too few points"


def _changes(run: ReportedRun) -> bool:
    return run.phase is not None and bool(run.phase.changes)


def _share_of_head(run: ReportedRun) -> float:
    """Of the rise of the best induction head's matching over the run, the part inside the changes of the ICL score.

    From 1 % to 99 % of each: half a width beyond the ends, at which 10 % and 90 % are done.
    """
    scores = run.matching_of_best
    rise = float(scores[-1] - scores[0])
    halves = [0.0 if band.is_open else (band.end - band.start) / 2 for band in run.bands]
    sides = [(band.start - half, band.end + half) for band, half in zip(run.bands, halves, strict=True)]
    ends = [np.interp(pair, run.tokens, scores) for pair in sides]
    return sum(float(after - before) for before, after in ends) / rise if rise > 0 else 0.0


def co_perturbation(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Supported: each smeared model forms induction heads where its control forms none, or sooner."""
    needed = ("icl_windowed", "prefix_matching", "change_p")
    pairs = smeared_pairs([run for run in runs if not run.not_taken(*needed)])
    untaken = _untaken([run for pair in smeared_pairs(runs) for group in pair for run in group.runs], *needed)
    if not pairs:
        return "not tested", [], untaken or NEEDS_PAIR
    effect, moved = [], []
    for smeared, plain in pairs:
        effect += [f"{group.name}: {_timing(group)}" for group in (smeared, plain)]
        moved.append(_forms_sooner(smeared, plain))
    finding: Finding = "supported" if all(moved) else "partly" if any(moved) else "not supported"
    seeds = min(len(group.runs) for pair in pairs for group in pair)
    return finding, effect, _limits("one seed each" if seeds == 1 else f"{seeds} seeds or more each", untaken)


def _timing(group: Group) -> str:
    score = float(np.mean([float(run.last("icl_windowed")) for run in group.runs]))
    changes = window_words([run.phase for run in group.runs if run.phase is not None])
    heads = "" if any(run.forms_induction for run in group.runs) else ", no induction head"
    return f"{changes}{heads}, ICL score {signed(score)} at the end"


def _forms_sooner(smeared: Group, plain: Group) -> bool:
    """Every smeared run changes and forms heads; the plain ones do not, or all of them later than all smeared ones."""
    formed = [_change_over(run) for run in smeared.runs]
    plain_formed = [_change_over(run) for run in plain.runs]
    return bool(np.isfinite(formed).all() and max(formed) < min(plain_formed))


def _change_over(run: ReportedRun) -> float:
    """Tokens at the end of the largest change of a run that forms induction heads; inf without."""
    largest = None if run.phase is None else run.phase.largest
    return largest.end if largest is not None and run.forms_induction else float("inf")


def ablation(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Supported: ablated with patterns kept, induction heads undo the change and cost ICL, others on average do not.

    Where heads were not ablated one by one: those of highest prefix matching, taken away together, raise the loss of
    tokens whose bigram stood before in the row, by more than that of others and than as many other heads do.
    """
    along, icl = "pattern_preserving_along_change", "pattern_preserving_icl_effect"
    on_text = ("set_seen_bigram_loss", "set_new_bigram_loss", "in_induction_set")
    found = [run for run in runs if run.has(along, icl) and run.forms_induction and run.window is not None]
    sets = [run for run in runs if run not in found and run.has(*on_text) and run.forms_induction]
    untaken = _untaken(_may_form([run for run in runs if run not in sets]), "prefix_matching", "step_after", along, icl)
    if not found and not sets:
        return "not tested", [], untaken or _FORMS_NONE
    effect, holds = [], []
    for run in sets:
        (seen, seen_others), (new, new_others) = (set_costs(run, variable) for variable in on_text[:2])
        n_heads = int(run.last("in_induction_set").sum())
        effect.append(
            f"{run.name}: without the heads of highest prefix matching ({n_heads}) {signed(seen)} nats where the "
            f"bigram stood before and {signed(new)} elsewhere, without others of their layers "
            f"{signed(seen_others)} and {signed(new_others)}"
        )
        # NaN where the layers have no other heads.
        holds += [seen > max(0.0, new), seen > max(0.0, float(np.nan_to_num(seen_others)))]
    for run in found:
        assert run.window is not None
        induction = run.heads_of("induction")
        others = [head for head in run.heads if head not in induction]
        undone, costs = -run.at(along, run.window[1]), run.at(icl, run.window[1])
        undoes, cost = _mean(undone, induction), _mean(costs, induction)
        text = (
            f"{run.name}: each induction head undoes {share(undoes)} of the change and costs {signed(cost)} nats "
            "of ICL score"
        )
        if others:
            text += f", the other heads {share(_mean(undone, others))} and {signed(_mean(costs, others))}"
        effect.append(text)
        holds += [undoes >= max(_UNDOES, _mean(undone, others)), cost > max(0.0, _mean(costs, others))]
    finding: Finding = "supported" if all(holds) else "partly" if any(holds) else "not supported"
    one_by_one = "means over heads, one at a time: heads that stand in for each other look weaker" if found else ""
    at_once = "of one snapshot or of the last: whether it was so before a change is open" if sets else ""
    return finding, effect, _limits(one_by_one, at_once, untaken)


def _mean(values: np.ndarray, heads: list[tuple[int, int]]) -> float:
    """Of [layer, head] values over some heads; 0 over none."""
    return float(np.mean([values[head] for head in heads])) if heads else 0.0


def generality(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Partly at most, where one head looks up what followed before for two behaviours or more that the model has."""
    rows = behaviours(runs)
    labelled = [run for run in runs if run.has("label")]
    if not rows:
        untaken = _untaken(labelled, "label_prob", "step_after")
        return "not tested", [], untaken or "the corpora of these runs label no behaviours beyond literal copying"
    effect = []
    for group in dict.fromkeys(row.group for row in rows):
        parts = [f"{row.label} {row.before.prob:.2f} → {row.after.prob:.2f}" for row in rows if row.group == group]
        effect.append(f"{group}: {', '.join(parts)}")
    shared = [text for run in runs if (text := _shared_heads(run))]
    untaken = _untaken(labelled, "label_prob", "label_matching", "step_after")
    limits = _limits(
        "" if shared or untaken else "no head looks up what followed before for two behaviours that its model has",
        "probability of the right token, attention of the heads; small models, and all copy", untaken,
    )  # fmt: skip
    return "partly" if shared else "not tested", effect + shared, limits


def _shared_heads(run: ReportedRun) -> str:
    """In words: the heads that look up what followed before for two behaviours or more; empty if there is none."""
    if not run.has("label_matching", "label_prob"):
        return ""
    matching, prob = run.last("label_matching"), run.last("label_prob")
    labels_of: dict[tuple[int, int], list[str]] = {}
    for label, score, p in zip(run.data["label"].values, matching, prob, strict=True):
        # A behaviour that the model has, and the head that attends most where it is asked for.
        if p >= HAS_LABEL and np.isfinite(score).all() and score.max() >= HEAD_THRESHOLD:
            layer, head = np.unravel_index(np.argmax(score), score.shape)
            labels_of.setdefault((int(layer), int(head)), []).append(f"{label} ({score.max():.2f})")
    found = [f"head {a}.{b} for {', '.join(labels)}" for (a, b), labels in labels_of.items() if len(labels) > 1]
    return f"{run.name}: what followed the same token before is looked up by {'; '.join(found)}" if found else ""


def mechanism(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Supported: induction heads copy, prefer matching keys by their weights, and read a previous-token head most."""
    needed = ("copying_eigenvalue", "qk_trace_ratio", "qk_trace", "k_composition_z", "previous_token")
    found = [run for run in runs if run.forms_induction and run.has("copying_eigenvalue")]
    untaken = _limits(
        _untaken(_may_form(runs), "prefix_matching", "copying_eigenvalue"),
        _untaken([run for run in _may_form(runs) if run.config.model.n_layers > 1], *needed[1:]),
    )
    if not found:
        return "not tested", [], untaken or _FORMS_NONE
    effect, holds = [], []
    for run in found:
        heads = run.heads_of("induction")
        copying = _mean(run.last("copying_eigenvalue"), heads)
        text = f"{run.name}: induction heads copy with {signed(copying)} (−1 to 1)"
        holds.append(copying > 0)
        if run.has(*needed):
            ratio = _mean(run.last("qk_trace_ratio"), heads)
            z, source = _composes_with(run, heads)
            previous = float(run.last("previous_token")[source])
            text += f", match by weights {signed(ratio)} (−1 to 1{_rank_correlation(run)}), and read head "
            text += f"{source[0]}.{source[1]} (previous-token score {previous:.2f}) at {signed(z, 1)} sd"
            holds += [ratio > 0, z >= _COMPOSES, previous >= HEAD_THRESHOLD]
        effect.append(text)
    if not any(run.has(*needed) for run in found):
        needs = "" if any(run.config.model.n_layers > 1 for run in found) else "K-composition needs two layers"
        return "partly" if all(holds) else "not supported", effect, f"copying only: {_limits(needs, untaken)}"
    finding: Finding = "supported" if all(holds) else "partly" if any(holds) else "not supported"
    weights = "read off the weights, with norm weights folded in; MLPs are left out"
    return finding, effect, _limits(weights, untaken)


def _rank_correlation(run: ReportedRun) -> str:
    """Of prefix matching and QK trace, over the heads of all layers but the first, in words; two heads have none."""
    matching, trace = run.last("prefix_matching")[1:].ravel(), run.last("qk_trace")[1:].ravel()
    if len(matching) < 3:
        return ""
    rank = float(stats.spearmanr(matching, trace).statistic)
    return f"; rank correlation of the trace with prefix matching {signed(rank)} over {len(matching)} heads"


def _composes_with(run: ReportedRun, heads: list[tuple[int, int]]) -> tuple[float, tuple[int, int]]:
    """The strongest K-composition of an earlier head with one of these: z, and that earlier head."""
    z = run.last("k_composition_z")
    layers, numbers = (list(part) for part in zip(*heads, strict=True))
    into = np.nan_to_num(z[:, :, layers, numbers], nan=-np.inf).max(axis=-1)
    layer, head = np.unravel_index(np.argmax(into), into.shape)
    return float(into[layer, head]), (int(layer), int(head))


def continuity(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """At most partly: three sizes or more on the same data form induction heads, and it speaks of those alone."""
    forming = [run for run in runs if run.forms_induction and run.has("icl_windowed")]
    sizes: dict[tuple[Any, ...], set[tuple[int, ...]]] = {}
    for run in forming:
        model = run.config.model
        sizes.setdefault(rows_of(run.config), set()).add((model.n_layers, model.d_model, model.n_heads, model.d_mlp))
    scores = [f"{run.name}: ICL score {signed(float(run.last('icl_windowed')))} at the end" for run in forming]
    most = max((len(found) for found in sizes.values()), default=0)
    untaken = _untaken(_may_form(runs), "prefix_matching", "icl_windowed")
    if most < _MIN_SIZES:
        needs = f"needs {_MIN_SIZES} sizes or more on the same data that form induction heads; here {most}"
        return "not tested", scores, _limits(needs, untaken)
    return "partly", scores, _limits("small models only; says nothing of large ones", untaken)
