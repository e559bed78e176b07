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
from icl_jax.model.head_scores import HEAD_THRESHOLD
from icl_jax.report.behaviours import behaviours
from icl_jax.report.figures.smeared_against_plain import NEEDS_PAIR, smeared_pairs
from icl_jax.report.reported_run import ReportedRun, millions, share, signed
from icl_jax.report.seeds import Group

Finding = Literal["supported", "partly", "not supported", "not tested"]

# Of what forms over a whole run, the part that must form inside the window. The paper: more than 0.75 of the score.
_MOST = 0.5
# A control without induction heads may change its score by this part of the smallest change with them.
_CONTROL = 0.5
# Share of the phase change that the induction heads must undo when ablated, as a mean over them.
_UNDOES = 0.1
# Probability of the right token from which on a model has a behaviour.
_HAS = 0.5
# Standard deviations above random heads.
_COMPOSES = 3.0
_MIN_SIZES = 3
_FORMS_NONE = "no run ends with an induction head"
_WORDS = {
    "copying_eigenvalue": "the copying scores", "icl_windowed": "the ICL scores",
    "k_composition_z": "the K-composition scores", "label_matching": "the heads' attention by label",
    "label_prob": "the losses by label",
    "pattern_preserving_along_change": "the ablations", "pattern_preserving_icl_effect": "the ablations",
    "phase_end": "the ends of the change", "phase_share": "the ends of the change",
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
    return [Verdict(argument, claim, paper, *find(runs)) for argument, claim, paper, find in rows]


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
    """Supported: both the score and the best head change mostly in one window, and controls on the same data do not."""
    needed = ("prefix_matching", "phase_share", "icl_windowed")
    untaken = _untaken(runs, *needed)
    measured = [run for run in runs if not run.not_taken(*needed)]
    forming = [run for run in measured if run.forms_induction]
    if not forming:
        return "not tested", [], untaken or _FORMS_NONE
    # No share of no change at all.
    shares = [(float(np.nan_to_num(run.data["phase_share"])), _share_of_head(run)) for run in forming]
    effect = [
        f"{run.name}: {100 * icl:.0f} % of the ICL score and {100 * head:.0f} % of the best head's prefix matching "
        "formed inside the window"
        for run, (icl, head) in zip(forming, shares, strict=True)
    ]
    # Each control with the smallest change of a run on its data that forms induction heads.
    controls = [
        (run, min(abs(_change(other)) for other in forming if rows_of(other.config) == rows_of(run.config)))
        for run in measured
        if not run.forms_induction and rows_of(run.config) in [rows_of(other.config) for other in forming]
    ]
    effect += [
        f"{run.name}, without induction heads: ICL score changed by {signed(_change(run))}" for run, _ in controls
    ]
    together = [min(pair) >= _MOST for pair in shares]
    limits = _limits("a correlation only", untaken)
    if not all(together):
        return "partly" if any(together) else "not supported", effect, limits
    if not controls:
        return "partly", effect, _limits(limits, "needs a run on the same data that forms no induction heads")
    is_flat = all(abs(_change(run)) <= _CONTROL * smallest for run, smallest in controls)
    return "supported" if is_flat else "partly", effect, limits


def _share_of_head(run: ReportedRun) -> float:
    """Of the rise of the best head's prefix matching over the run, the part inside the window."""
    layer, head = np.unravel_index(np.argmax(run.last("prefix_matching")), run.last("prefix_matching").shape)
    scores = run.data["prefix_matching"].values[:, layer, head]
    assert run.window is not None
    before, after = (float(run.at("prefix_matching", step)[layer, head]) for step in run.window)
    rise = float(scores[-1] - scores[0])
    return (after - before) / rise if rise > 0 else 0.0


def _change(run: ReportedRun) -> float:
    """ICL score at the end of the run minus at its start."""
    return float(run.last("icl_windowed") - run.data["icl_windowed"].values[0])


def co_perturbation(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Supported: each smeared model forms induction heads where its control forms none, or sooner."""
    needed = ("icl_windowed", "prefix_matching", "phase_end")
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
    forming = [run.band.end for run in group.runs if run.forms_induction and run.band is not None]
    when = f"change over at {millions(float(np.mean(forming)))} tokens" if forming else "no induction head"
    return f"{when}, ICL score {signed(score)} at the end"


def _forms_sooner(smeared: Group, plain: Group) -> bool:
    if not all(run.forms_induction for run in smeared.runs):
        return False
    if not any(run.forms_induction for run in plain.runs):
        return True
    latest = max(run.band.end for run in smeared.runs if run.band is not None)
    return latest < min(run.band.end for run in plain.runs if run.forms_induction and run.band is not None)


def ablation(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Supported: ablated with patterns kept, induction heads undo the change and cost ICL, others on average do not."""
    along, icl = "pattern_preserving_along_change", "pattern_preserving_icl_effect"
    found = [run for run in runs if run.has(along, icl) and run.forms_induction and run.window is not None]
    untaken = _untaken(_may_form(runs), "prefix_matching", "phase_end", along, icl)
    if not found:
        return "not tested", [], untaken or _FORMS_NONE
    effect, holds = [], []
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
    one_by_one = "means over heads, one at a time: heads that stand in for each other look weaker"
    return finding, effect, _limits(one_by_one, untaken)


def _mean(values: np.ndarray, heads: list[tuple[int, int]]) -> float:
    """Of [layer, head] values over some heads; 0 over none."""
    return float(np.mean([values[head] for head in heads])) if heads else 0.0


def generality(runs: list[ReportedRun]) -> tuple[Finding, list[str], str]:
    """Partly at most, where one head looks up what followed before for two behaviours or more that the model has."""
    rows = behaviours(runs)
    labelled = [run for run in runs if run.has("label")]
    if not rows:
        untaken = _untaken(labelled, "label_prob", "phase_end")
        return "not tested", [], untaken or "the corpora of these runs label no behaviours beyond literal copying"
    effect = []
    for group in dict.fromkeys(row.group for row in rows):
        parts = [f"{row.label} {row.before.prob:.2f} → {row.after.prob:.2f}" for row in rows if row.group == group]
        effect.append(f"{group}: {', '.join(parts)}")
    shared = [text for run in runs if (text := _shared_heads(run))]
    untaken = _untaken(labelled, "label_prob", "label_matching", "phase_end")
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
        if p >= _HAS and np.isfinite(score).all() and score.max() >= HEAD_THRESHOLD:
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
