"""One picture of several runs: the ICL score and the heads over training, and the loss by position before and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr

from icl_jax.analysis.opened_run import open_run
from icl_jax.config import UserError
from icl_jax.maths.steepest_fall import phase_change, smooth
from icl_jax.measures.phase_change import window_snapshots
from icl_jax.rundir import RunDir

# Okabe and Ito's colours, which stay apart for colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_BEFORE, _AFTER = "#999999", "#D55E00"
# The per-step score is that of one batch; the line is its mean over this share of the run.
_LINE_SHARE = 0.015
_INDUCTION = 0.2


@dataclass(frozen=True, slots=True)
class Curve:
    """What the picture and the table show of one run."""

    name: str
    record: xr.Dataset
    band: tuple[float, float]
    """The phase change in training tokens: that of the analysis where it was measured, else that of the probes."""
    best_head: tuple[int, int] | None
    """Layer and head with the highest prefix matching at the end; None for a model without layers."""

    @property
    def tokens(self) -> np.ndarray:
        return self.record["probe_tokens"].values

    @property
    def prefix_matching(self) -> np.ndarray:
        """Prefix matching of the best head over the probes; zeros without layers."""
        if self.best_head is None:
            return np.zeros(self.record.sizes["probe"])
        layer, head = self.best_head
        return self.record["prefix_matching"].values[:, layer, head]

    @property
    def has_induction(self) -> bool:
        """Whether a head ends above a prefix matching of 0.2, where uniform attention scores 0.03."""
        return bool(self.prefix_matching[-1] > _INDUCTION)

    def before_after(self) -> tuple[int, int]:
        """Probes on either side of the change; without induction heads, that after a tenth of the run and the last."""
        last = self.record.sizes["probe"] - 1
        if self.has_induction:
            return window_snapshots(self.tokens, *self.band)
        return last // 10, last


def load_curve(path: str, name: str) -> Curve:
    """Read one run. Raises UserError if it cannot be read or holds fewer than three probes."""
    record = RunDir.open(path).load_record().load()
    n_probes = record.sizes.get("probe", 0)
    if n_probes < 3:
        raise UserError(f"{path}: holds {n_probes} probes; a curve needs at least 3 (probes.n_probes)")
    best = None
    if "prefix_matching" in record:
        scores = record["prefix_matching"].values[-1]
        layer, head = np.unravel_index(np.argmax(scores), scores.shape)
        best = (int(layer), int(head))
    return Curve(name, record, _band(path, record), best)


def _band(path: str, record: xr.Dataset) -> tuple[float, float]:
    if (RunDir.open(path).path / "analysis.zarr").exists():
        analysis = open_run(path).analysis
        if "phase_start_tokens" in analysis:
            return float(analysis["phase_start_tokens"]), float(analysis["phase_end_tokens"])
    tokens = record["probe_tokens"].values
    change = phase_change(tokens, record["icl_windowed"].values)
    return float(tokens[change.start]), float(tokens[change.end])


def icl_per_step(record: xr.Dataset) -> np.ndarray:
    """The windowed ICL score of every training batch, smoothed; nats."""
    loss = record["loss"].values
    early, late = (loss[:, a - 1 : b].mean(axis=1) for a, b in icl_windows(record))
    score = late - early
    return smooth(score, 2 * max(1, round(_LINE_SHARE * len(score) / 2)) + 1)


def icl_windows(record: xr.Dataset) -> tuple[tuple[int, int], tuple[int, int]]:
    """Token indexes, first and last, of the early and the late window of the ICL score."""
    early, late = record.attrs["icl_early_window"], record.attrs["icl_late_window"]
    return (early[0], early[1]), (late[0], late[1])


def plot_phase_change(curves: list[Curve], path: Path) -> None:
    """Write the picture as PNG. Above, all runs' ICL score and best heads against tokens; below, one panel a run."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(10, 9), layout="constrained")
        halves: Any = figure.subfigures(2, 1, height_ratios=[1.9, 1])
        above, below = halves
        score, heads = above.subplots(2, 1, sharex=True, height_ratios=[1.7, 1])
        _plot_icl(score, curves)
        _plot_heads(heads, curves)
        panels = below.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for axes, curve in zip(panels, curves, strict=True):
            _plot_positions(axes, curve)
        panels[0].set_ylabel("held-out loss (nats)")
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _plot_icl(axes: Any, curves: list[Curve]) -> None:
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        record = curve.record
        axes.plot(record["tokens"].values / 1e6, icl_per_step(record), color=colour, lw=1.6, label=curve.name)
        axes.plot(curve.tokens / 1e6, record["icl_windowed"].values, "o", color=colour, ms=2.5, alpha=0.5)
        if curve.has_induction:
            _plot_band(axes, curve, colour)
    (early_a, early_b), (late_a, late_b) = icl_windows(curves[0].record)
    axes.set_ylabel(f"ICL score, windowed (nats)\ntokens {late_a}-{late_b} minus tokens {early_a}-{early_b}")
    axes.set_title("In-context learning forms in one abrupt change, where induction heads can", loc="left", fontsize=11)
    axes.axhline(0, color="#cccccc", lw=0.8, zorder=0)
    axes.margins(x=0.01)
    axes.legend(
        title="line: training batches   dots: held-out rows\nband: the phase change",
        title_fontsize=8.5,
        fontsize=9,
        labelspacing=0.3,
        facecolor="white",
        edgecolor="none",
        loc="center right",
        bbox_to_anchor=(1.0, 0.52),
    )


def _plot_band(axes: Any, curve: Curve, colour: str) -> None:
    start, end = curve.band
    axes.axvspan(start / 1e6, end / 1e6, color=colour, alpha=0.12, lw=0)


def _plot_heads(axes: Any, curves: list[Curve]) -> None:
    """Solid: prefix matching of the head that is best at the end; dashed: previous token, of layer 0's best head."""
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        if curve.best_head is None:
            continue
        axes.plot(curve.tokens / 1e6, curve.prefix_matching, color=colour, lw=1.6)
        previous = curve.record["previous_token"].values[:, 0]
        axes.plot(curve.tokens / 1e6, previous[:, np.argmax(previous[-1])], color=colour, lw=1.1, ls="--")
        if curve.has_induction:
            _plot_band(axes, curve, colour)
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("attention of the best head")
    axes.set_title("solid: prefix matching   dashed: previous token, layer 0", loc="left", fontsize=9)
    axes.set_ylim(0, None)
    axes.margins(x=0.01)


def _plot_positions(axes: Any, curve: Curve) -> None:
    loss = curve.record["held_out_loss"].values
    positions = np.arange(1, loss.shape[1] + 1)
    for probe, colour, word in zip(curve.before_after(), (_BEFORE, _AFTER), ("before", "after"), strict=True):
        label = f"{word}: {curve.tokens[probe] / 1e6:.1f} M tokens"
        axes.plot(positions, loss[probe], color=colour, lw=1.3, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("token index")
    axes.set_title(curve.name, loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
