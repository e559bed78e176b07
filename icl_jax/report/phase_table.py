"""The phase change of one analysis, as lines of text."""

import json
from collections.abc import Iterator

import numpy as np
import xarray as xr

from icl_jax.model.head_scores import HEAD_THRESHOLD

_N_NAMED = 8
_KINDS = {"full": "full", "pattern_preserving": "pattern-preserving", "mean": "mean", "resample": "resample"}


def phase_table(dataset: xr.Dataset) -> list[str]:
    """Window, ICL score before and after, heads, composition, ablations; what is absent, and why."""
    lines = [*_dimensions(dataset), *_window(dataset), *_tokens(dataset), *_heads(dataset), *_composition(dataset)]
    return [*lines, *_ablations(dataset), *_absent(dataset)]


def _line(title: str, text: str) -> str:
    return f"  {title:<28} {text}"


def _dimensions(dataset: xr.Dataset) -> Iterator[str]:
    sizes = ", ".join(
        f"{name} {dataset.sizes[name]}" for name in ("snapshot", "layer", "head", "position") if name in dataset.sizes
    )
    yield f"analysis of run {dataset.attrs['run_id']}: {sizes}; {dataset.attrs['held_out_rows']} held-out rows"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:.3g} M"


def _window(dataset: xr.Dataset) -> Iterator[str]:
    if "phase_start" not in dataset:
        return
    for end in ("start", "end"):
        step, tokens = int(dataset[f"phase_{end}"]), float(dataset[f"phase_{end}_tokens"])
        low, high = dataset[f"phase_{end}_interval"].values
        interval = f"  (90 % interval {_millions(low)} to {_millions(high)})" if np.isfinite(low) else ""
        yield _line(f"phase change {end}", f"step {step}, {_millions(tokens)} tokens{interval}")
    at = [int(dataset["phase_start"]), int(dataset["phase_end"]), int(dataset["snapshot"][-1])]
    for name in ("icl_windowed", "icl_score"):
        values = [float(dataset[name].sel(snapshot=step)) for step in at]
        yield _line(f"{name} (nats)", "before {:+.3f}, after {:+.3f}, end of run {:+.3f}".format(*values))
    share = float(dataset["phase_share"])
    of_run = f", {100 * share:.0f} % of the whole run" if np.isfinite(share) else ""
    yield _line("formed in the window", f"{float(dataset['phase_drop']):+.3f} nats{of_run}")
    if "bump_height" in dataset:
        where = _millions(float(dataset["bump_tokens"]))
        yield _line("bump in the loss curve", f"{float(dataset['bump_height']):.3f} nats, at {where} tokens")


def _tokens(dataset: xr.Dataset) -> Iterator[str]:
    names = {"induction_correct": "induction right", "induction_wrong": "induction wrong", "new_prefix": "new prefix"}
    if "induction_correct_change" in dataset:
        changes = {text: float(dataset[f"{name}_change"]) for name, text in names.items()}
        parts = [f"{text} {change:+.3f}" for text, change in changes.items() if np.isfinite(change)]
        yield _line("loss change by token (nats)", ", ".join(parts))


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
    # At the end of the change: it is what these heads have just done that the vector measures.
    now = {"selected": int(dataset["phase_end"])}
    yield _line(
        "ablation at the end of it", "head: share of the change that it undoes (and the ICL score it costs, nats)"
    )
    n_layers, n_heads = dataset.sizes["layer"], dataset.sizes["head"]
    for kind, title in _KINDS.items():
        along = -dataset[f"{kind}_along_change"].sel(now).values
        icl = dataset[f"{kind}_icl_effect"].sel(now).values
        order = np.argsort(-along, axis=None)[: min(_N_NAMED, n_layers * n_heads)]
        heads = zip(*np.unravel_index(order, along.shape), strict=True)
        yield _line(f"  {title}", ", ".join(f"{a}.{b} {along[a, b]:.2f} ({icl[a, b]:+.2f})" for a, b in heads))


def _absent(dataset: xr.Dataset) -> Iterator[str]:
    for name, why in json.loads(dataset.attrs["absent"]).items():
        yield _line(f"absent: {name}", why)
