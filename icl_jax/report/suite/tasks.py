"""Pictures of tasks in which an induction head is all there is to learn: Markov chains, triggers, few-shot classes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr

from icl_jax.analysis.opened_run import OpenedRun
from icl_jax.config import UserError
from icl_jax.data.corpora.character_bigrams import N_CHARACTERS
from icl_jax.data.corpora.classes import ClassesOptions
from icl_jax.data.corpora.triggers import TriggersOptions
from icl_jax.report.suite.phase_change import COLOURS

# A memory counts as formed when its probe has passed this for good. Ours: the paper shows curves and names no value.
FORMED = {"output_recall": 0.2, "trigger_recall": 0.9, "previous_recall_early": 0.2}
_STRATEGIES = ("uniform", "unigram", "bigram")


def strategy_names(n: int) -> list[str]:
    """Names on the axis `strategy`: uniform, unigram, bigram, 3-gram and so on."""
    return [_STRATEGIES[i] if i < len(_STRATEGIES) else f"{i}-gram" for i in range(n)]


def plot_markov(run: OpenedRun, path: Path) -> None:
    """Loss, KL to every strategy, and attention over training, as PNG; lines across: the strategies' own losses.

    Raises UserError if the analysis lacks `markov_strategies` or `head_scores`.
    """
    data = _analysis(run, {"strategy_kl": "markov_strategies", "previous_token": "head_scores"})
    tokens = data["tokens"].values / 1e6
    names = strategy_names(data.sizes["strategy"])
    with _style() as plt:
        figure, (losses, divergences, attention) = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
        losses.plot(tokens, data["markov_loss"].values, color="black", lw=1.4)
        for i, name in enumerate(names):
            own = float(data["strategy_loss"].values[0, i])
            losses.axhline(own, color=COLOURS[i], lw=0.9, ls="--")
            # The last is the floor, which the curve comes down to from above.
            side = "bottom" if i < len(names) - 1 else "top"
            losses.annotate(name, (tokens[-1], own), ha="right", va=side, color=COLOURS[i])
            divergences.plot(tokens, data["strategy_kl"].values[:, i], color=COLOURS[i], lw=1.4, label=name)
        losses.margins(y=0.1)
        _finish(losses, "Loss of the model, and of each strategy", "nats")
        divergences.set_yscale("log")
        _finish(divergences, "KL(strategy ‖ model)", "nats")
        _legend_below(divergences, 3)
        previous = data["previous_token"].values[:, 0]
        best = int(previous[-1].argmax())
        attention.plot(tokens, previous[:, best], color=COLOURS[3], lw=1.4, label=f"to the token before, head 0.{best}")
        match = data["match_attention"].values[:, 1:].reshape(len(tokens), -1)
        if match.size:
            layer, head = divmod(int(match[-1].argmax()), data.sizes["head"])
            label = f"to what followed the same before, head {layer + 1}.{head}"
            attention.plot(tokens, match[:, layer * data.sizes["head"] + head], color=COLOURS[4], lw=1.4, label=label)
            attention.axhline(float(data["match_attention_chance"][0]), color=COLOURS[4], lw=0.9, ls="--")
        attention.set_ylim(0, 1)
        _finish(attention, "Attention (dashed: uniform)", "share")
        _legend_below(attention, 1)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def best_memories(data: xr.Dataset) -> dict[str, np.ndarray]:
    """Each probe over the snapshots, of the head that ends with most: output and trigger recall of later layers.

    Layer 0's heads for previous_recall, all later layers for output_recall, all pairs for trigger_recall. Empty for a
    model without a second layer.
    """
    found = {}
    for name, values in {
        "output_recall": data["output_recall"].values[:, 1:],
        "trigger_recall": data["trigger_recall"].values,
        "previous_recall_early": data["previous_recall_early"].values[:, 0],
    }.items():
        each = values.reshape(len(values), -1)
        each = each[:, np.isfinite(each).all(axis=0)]
        if each.size:
            found[name] = each[:, each[-1].argmax()]
    return found


def formed_at(data: xr.Dataset) -> dict[str, int | None]:
    """First snapshot (index) from which on each memory stays above its threshold (`FORMED`); None: never."""
    found: dict[str, int | None] = {}
    for name, values in best_memories(data).items():
        below = np.flatnonzero(values <= FORMED[name])
        first = int(below[-1]) + 1 if len(below) else 0
        found[name] = first if first < len(values) else None
    return found


def plot_triggers(run: OpenedRun, path: Path) -> None:
    """Memory probes, accuracy, and losses over training, as PNG; dots: where a memory has formed.

    Raises UserError if the analysis lacks `memory_recall`, `labelled_tokens` or `held_out_loss`.
    """
    data = _analysis(
        run, {"output_recall": "memory_recall", "label_top1": "labelled_tokens", "loss_curve": "held_out_loss"}
    )
    tokens = data["tokens"].values / 1e6
    words = {
        "output_recall": "$W_O^2$: the output is what is attended to",
        "trigger_recall": "$W_K^2$: look after the same trigger",
        "previous_recall_early": "$W_K^1$: look at the token before (first 64)",
    }
    with _style() as plt:
        figure, (memories, losses) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained", width_ratios=[3, 2])
        starts = formed_at(data)
        for (name, values), colour in zip(best_memories(data).items(), COLOURS, strict=False):
            memories.plot(tokens, values, color=colour, lw=1.3, label=words[name])
            if (start := starts[name]) is not None:
                memories.plot(tokens[start], values[start], "o", color=colour, ms=5)
        labels = [str(name) for name in data["label"].values]
        again = labels.index("output_again")
        memories.plot(
            tokens,
            data["label_top1"].values[:, again],
            color="black",
            lw=1.6,
            label="accuracy after a trigger seen before",
        )
        memories.set_ylim(0, 1.02)
        _finish(memories, "Memory recall, and what it is for", "share right")
        _legend_below(memories, 2)
        losses.plot(tokens, data["loss_curve"].values, color="#999999", lw=1.2, label="all tokens")
        for i, (label, text) in enumerate(
            {"output_new": "after a trigger new in the row", "output_again": "after a trigger seen before"}.items()
        ):
            values = data["label_loss"].values[:, labels.index(label)]
            losses.plot(tokens, values, color=COLOURS[5 + i], lw=1.4, label=text)
        level = np.log(N_CHARACTERS - run.config.data.options_of(TriggersOptions).n_triggers)
        losses.axhline(level, color=COLOURS[5], lw=0.9, ls="--")
        _finish(losses, "Loss (dashed: any character but triggers)", "nats")
        _legend_below(losses, 1)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def plot_classes(run: OpenedRun, path: Path) -> None:
    """Accuracy on the three kinds of held-out rows, and attention of the head that looks labels up, as PNG.

    Dashed: a label of the context at random, burstiness over context. Raises UserError if the analysis lacks
    `labelled_tokens` or `label_matching`.
    """
    data = _analysis(run, {"label_top1": "labelled_tokens", "label_matching": "label_matching"})
    tokens = data["tokens"].values / 1e6
    labels = [str(name) for name in data["label"].values]
    words = {
        "new_class": "new classes, in the context",
        "swapped_label": "known classes, labels swapped in the context",
        "in_weights": "known classes, not in the context",
    }
    with _style() as plt:
        figure, (accuracy, attention) = plt.subplots(1, 2, figsize=(10, 3.7), layout="constrained", width_ratios=[3, 2])
        for (name, text), colour in zip(words.items(), COLOURS, strict=False):
            accuracy.plot(tokens, data["label_top1"].values[:, labels.index(name)], color=colour, lw=1.5, label=text)
        guess = run.config.data.options_of(ClassesOptions).burstiness / (run.config.model.n_ctx // 3 - 1)
        accuracy.axhline(guess, color="black", lw=0.9, ls="--")
        accuracy.set_ylim(0, 1.02)
        _finish(accuracy, "Accuracy on the last label (dashed: any label of the context)", "share right")
        _legend_below(accuracy, 2)
        match = data["label_matching"].values[:, labels.index("new_class")]
        best = np.unravel_index(match[-1].argmax(), match.shape[1:])
        label = f"to the labels of the same last letter, head {best[0]}.{best[1]}"
        attention.plot(tokens, match[:, best[0], best[1]], color=COLOURS[3], lw=1.5, label=label)
        attention.set_ylim(0, 1.02)
        _finish(attention, "Attention from the last item, new classes", "share")
        _legend_below(attention, 1)
        figure.savefig(path, dpi=110)
        plt.close(figure)


PICTURES: dict[str, Callable[[OpenedRun, Path], None]] = {
    "markov": plot_markov,
    "triggers": plot_triggers,
    "classes": plot_classes,
}
"""By data.source, what draws a run of that corpus."""


def _analysis(run: OpenedRun, needs: dict[str, str]) -> xr.Dataset:
    data = run.analysis
    for variable, measurement in needs.items():
        if variable not in data:
            raise UserError(f"{run.path}: no {variable}: icl-jax analyze {run.path} --only {measurement} takes it")
    return data.load()


def _legend_below(axes: Any, n_columns: int) -> None:
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=n_columns)


@contextmanager
def _style() -> Iterator[Any]:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        yield plt


def _finish(axes: Any, title: str, unit: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel(unit)
    axes.margins(x=0.01)
