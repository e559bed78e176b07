"""One picture of one run: in-context learning and the heads that make it, over training."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

from icl_jax.report.phase_change import COLOURS, Curve, icl_per_step, icl_windows

_HEAD_SCORES = {"prefix_matching": "prefix matching", "previous_token": "previous token"}


def plot_run(curve: Curve, path: Path) -> None:
    """Write the picture as PNG: the windowed ICL score, then each head's scores, against tokens."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    scores = {name: text for name, text in _HEAD_SCORES.items() if name in curve.record}
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, rows = plt.subplots(
            1 + len(scores), 1, sharex=True, squeeze=False, figsize=(9, 3 + 2 * len(scores)), layout="constrained"
        )
        panels: list[Any] = list(rows[:, 0])
        _plot_icl(panels[0], curve)
        for axes, (name, text) in zip(panels[1:], scores.items(), strict=True):
            _plot_heads(axes, curve, name, text)
        if curve.has_induction:
            start, end = (curve.tokens[i] / 1e6 for i in (curve.change.start, curve.change.end))
            for axes in panels:
                axes.axvspan(start, end, color="#E69F00", alpha=0.15, lw=0, zorder=0)
        panels[-1].set_xlabel(
            "training tokens (millions)   band: the phase change" if curve.has_induction else "tokens (M)"
        )
        figure.savefig(path, dpi=120)
        plt.close(figure)


def _plot_icl(axes: Any, curve: Curve) -> None:
    record = curve.record
    axes.plot(record["tokens"].values / 1e6, icl_per_step(record), color="#555555", lw=1.2, label="training batches")
    axes.plot(curve.tokens / 1e6, record["icl_windowed"].values, "o", color="#000000", ms=2.5, label="held-out rows")
    (early_a, early_b), (late_a, late_b) = icl_windows(record)
    axes.set_ylabel("ICL score (nats)")
    axes.set_title(
        f"{curve.name}: loss at tokens {late_a}-{late_b} minus tokens {early_a}-{early_b}", loc="left", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)
    axes.margins(x=0.01)


def _plot_heads(axes: Any, curve: Curve, name: str, text: str) -> None:
    scores = curve.record[name].values
    for layer in range(scores.shape[1]):
        for head in range(scores.shape[2]):
            label = f"layer {layer}" if head == 0 else None
            colour = COLOURS[layer % len(COLOURS)]
            axes.plot(curve.tokens / 1e6, scores[:, layer, head], color=colour, lw=1.2, label=label)
    axes.set_ylabel(text)
    axes.set_ylim(0, max(0.5, float(scores.max()) * 1.05))
    axes.legend(frameon=False, fontsize=8, loc="upper left")
