"""The phase change of one analysis, as lines of text."""

import json
from collections.abc import Iterator

import numpy as np
import xarray as xr

from icl_jax.maths.finding import change_words
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.maths.icl_score import SAYS_NOTHING
from icl_jax.measures.curves import SCORES, best_head_of
from icl_jax.measures.phase_change import finding_of
from icl_jax.measures.table import on_request
from icl_jax.report.reported_run import HAS_LABEL

_N_NAMED = 8
_ON_REQUEST = on_request()
_KINDS = {"full": "full", "pattern_preserving": "pattern-preserving", "mean": "mean", "resample": "resample"}


def phase_table(dataset: xr.Dataset) -> list[str]:
    """Changes, ICL score before and after, behaviours, heads, composition, ablations; what is absent, and why."""
    lines = [
        *_dimensions(dataset),
        *_window(dataset),
        *_loss(dataset),
        *_tokens(dataset),
        *_labels(dataset),
        *_heads(dataset),
        *_head_changes(dataset),
        *_own_corpus(dataset),
    ]
    return [*lines, *_composition(dataset), *_ablations(dataset), *_absent(dataset)]


def _line(title: str, text: str) -> str:
    return f"  {title:<28} {text}"


def _dimensions(dataset: xr.Dataset) -> Iterator[str]:
    sizes = ", ".join(
        f"{name} {dataset.sizes[name]}" for name in ("snapshot", "layer", "head", "position") if name in dataset.sizes
    )
    yield f"analysis of run {dataset.attrs['run_id']}: {sizes}; {dataset.attrs['held_out_rows']} held-out rows"


def _millions(tokens: float) -> str:
    return "the end" if np.isinf(tokens) else f"{tokens / 1e6:.3g} M"


def _window(dataset: xr.Dataset) -> Iterator[str]:
    if "change_p" not in dataset:
        return
    finding = finding_of(dataset)
    if not finding.changes:
        yield _line("phase change", finding.words())
    for change in finding.changes:
        yield _line("phase change", change_words(change))
        sides = [("start", change.start_interval), ("end", change.end_interval)][: 1 if change.is_open else 2]
        parts = [f"{side} {_millions(low)} to {_millions(high)}" for side, (low, high) in sides]
        low, high = change.size_interval
        yield _line("  90 % intervals", ", ".join([*parts, f"size {low:+.2f} to {high:+.2f} nats"]))
    before, after = int(dataset["step_before"]), int(dataset["step_after"])
    last = int(dataset["snapshot"][-1])
    at = {f"before (step {before})": before, f"after (step {after})": after, "end of run": last}
    if not finding.changes:  # then there is no before: a tenth of the run and its end
        at = {f"a tenth of the run (step {before})": before, "end of run": last}
    for name in ("icl_windowed", "icl_score"):
        errors = dataset["icl_sem" if name == "icl_windowed" else "icl_score_sem"]
        values = [
            f"{words} {float(dataset[name].sel(snapshot=step)):+.3f}" + _plus_minus(float(errors.sel(snapshot=step)))
            for words, step in at.items()
        ]
        if name == "icl_score" and (error := float(errors.max())) > SAYS_NOTHING:
            values = [f"not shown: at single tokens its standard error is up to {error:.2f}"]
        yield _line(f"{name} (nats)", ", ".join(values))
    if "floor_icl" in dataset:
        floor, over = float(dataset["floor_icl"]), float(dataset["icl_over_floor"][-1])
        of_over = _plus_minus(float(dataset["icl_over_floor_sem"][-1]))
        of_floor = _plus_minus(float(dataset["floor_icl_sem"]))
        yield _line(
            "of the corpus itself (nats)", f"{floor:+.3f}{of_floor}, the end of run {over:+.3f}{of_over} from it"
        )
    if "steepest_drop" in dataset and dataset.sizes["snapshot"] > 1:
        ends = (_millions(float(dataset[f"steepest_{side}_tokens"])) for side in ("start", "end"))
        fall, share = float(dataset["steepest_drop"]), float(dataset["steepest_share"])
        of_run = f" ({100 * share:.0f} % of the run's change)" if np.isfinite(share) else ""
        yield _line("steepest fall, change or not", f"{' to '.join(ends)} tokens, {fall:+.2f} nats{of_run}")
    if "bump_height" in dataset:
        where = _millions(float(dataset["bump_tokens"]))
        yield _line("bump in the loss curve", f"{float(dataset['bump_height']):.3f} nats, at {where} tokens")


def _plus_minus(error: float) -> str:
    return f" ±{error:.3f}" if np.isfinite(error) else ""


def _loss(dataset: xr.Dataset) -> Iterator[str]:
    if "loss_change_p" in dataset:
        yield _line("held-out loss", finding_of(dataset, "loss_change").words())


def _tokens(dataset: xr.Dataset) -> Iterator[str]:
    names = {"induction_correct": "induction right", "induction_wrong": "induction wrong", "new_prefix": "new prefix"}
    if "induction_correct_change" in dataset:
        changes = {text: float(dataset[f"{name}_change"]) for name, text in names.items()}
        parts = [f"{text} {change:+.3f}" for text, change in changes.items() if np.isfinite(change)]
        yield _line("loss change by token (nats)", ", ".join(parts))


def _labels(dataset: xr.Dataset) -> Iterator[str]:
    for i, label in enumerate(dataset["label"].values) if "label_change_p" in dataset else ():
        at_end = float(dataset["label_prob"].values[-1, i])
        if np.isfinite(at_end):
            words = finding_of(dataset, "label_change", label=i).words("", dataset.sizes["label"])
            yield _line(f"p({label})", f"{at_end:.2f} at the end; {words}")


def _named(scores: np.ndarray) -> list[str]:
    order = np.argsort(-scores, axis=None)[:_N_NAMED]
    return [
        f"{layer}.{head} {scores[layer, head]:.2f}"
        for layer, head in zip(*np.unravel_index(order, scores.shape), strict=True)
    ]


def _heads(dataset: xr.Dataset) -> Iterator[str]:
    for name, title in (("prefix_matching", "induction heads"), ("previous_token", "previous-token heads")):
        if name not in dataset:
            continue
        scores, untrained = dataset[name].values[-1], dataset[name].values[0].mean()
        n_above = int(np.sum(scores >= HEAD_THRESHOLD))
        best = _named(scores)
        text = ", ".join(best[:n_above]) if n_above else f"none; the highest {', '.join(best[:3])}"
        yield _line(title, f"{text}  ({name} {HEAD_THRESHOLD} or more at the end; {untrained:.3f} at the start)")


def _head_changes(dataset: xr.Dataset) -> Iterator[str]:
    """Of each score its best head at the end: whether that forms abruptly."""
    for i, (score, words) in enumerate(SCORES.items()):
        if score in dataset and "head_change_p" in dataset:
            layer, head = best_head_of(dataset[score].values[-1])
            finding = finding_of(dataset, "head_change", score=i, layer=layer, head=head)
            yield _line(f"{words} of {layer}.{head}", finding.words("", dataset["head_change_p"].size))


def _own_corpus(dataset: xr.Dataset) -> Iterator[str]:
    """Of each label that is known at the end, the head that attends most to what followed the same token before."""
    if "label_matching" not in dataset or "label_prob" not in dataset:
        return
    parts = []
    scores, probs = dataset["label_matching"].values[-1], dataset["label_prob"].values[-1]
    for label, score, prob in zip(dataset["label"].values, scores, probs, strict=True):
        if prob >= HAS_LABEL and np.isfinite(score).all():
            parts.append(f"{_named(score)[0]} ({label})")
    if parts:
        yield _line("matching in its own corpus", f"{', '.join(parts)}  (label_matching of what it has learned)")


def _composition(dataset: xr.Dataset) -> Iterator[str]:
    for letter in "kqv":
        name = f"{letter}_composition_z"
        if name not in dataset:
            continue
        z = dataset[name].values[-1]
        order = np.argsort(-z, axis=None)[: min(3, np.isfinite(z).sum())]  # NaN, not a pair, sorts last
        parts = [
            f"{a}.{b} -> {c}.{d} {z[a, b, c, d]:+.1f}"
            for a, b, c, d in zip(*np.unravel_index(order, z.shape), strict=True)
        ]
        yield _line(f"{letter.upper()}-composition", f"{', '.join(parts)}  (sd above random heads, at the end)")


def _ablations(dataset: xr.Dataset) -> Iterator[str]:
    if "full_along_change" not in dataset:
        return
    # After the change: it is what these heads have just done that the vector measures.
    now = {"selected": int(dataset["step_after"])}
    when, what = "after it", "the change"
    if not finding_of(dataset).changes:
        when, what = "at the end", "what the run changed from a tenth of it on"
    yield _line(f"ablation {when}", f"head: share of {what} that it undoes (and the ICL score it costs, nats)")
    n_layers, n_heads = dataset.sizes["layer"], dataset.sizes["head"]
    for kind, title in _KINDS.items():
        along = -dataset[f"{kind}_along_change"].sel(now).values
        icl = dataset[f"{kind}_icl_effect"].sel(now).values
        order = np.argsort(-along, axis=None)[: min(_N_NAMED, n_layers * n_heads)]
        heads = zip(*np.unravel_index(order, along.shape), strict=True)
        yield _line(f"  {title}", ", ".join(f"{a}.{b} {along[a, b]:.2f} ({icl[a, b]:+.2f})" for a, b in heads))


def _absent(dataset: xr.Dataset) -> Iterator[str]:
    absent = json.loads(dataset.attrs["absent"])
    by_name = [name for name in absent if name in _ON_REQUEST]
    for name in (name for name in absent if name not in _ON_REQUEST):
        yield _line(f"absent: {name}", absent[name])
    if by_name:
        yield _line("taken by name alone", ", ".join(by_name))
