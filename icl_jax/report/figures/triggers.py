"""Bigrams with triggers (Bietti et al. 2023): memories of the weights, accuracy and losses."""

import numpy as np
import xarray as xr

from icl_jax.data.corpora.character_bigrams import N_CHARACTERS
from icl_jax.data.corpora.triggers import TriggersOptions
from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import SHARE, TOKENS, RunFigure, level
from icl_jax.report.reported_run import ReportedRun

# A memory counts as formed when its probe has passed this for good. Ours: the paper shows curves and names no value.
FORMED = {"output_recall": 0.2, "trigger_recall": 0.9, "previous_recall_early": 0.2}
_WORDS = {
    "output_recall": "W_O²: the output is what is attended to",
    "trigger_recall": "W_K²: look after the same trigger",
    "previous_recall_early": "W_K¹: look at the token before (first 64)",
}


def best_memories(data: xr.Dataset) -> dict[str, np.ndarray]:
    """Each memory over the snapshots, of the head that ends with most: output and trigger recall of later layers.

    Layer 0's heads for previous_recall, all later layers for output_recall, all pairs for trigger_recall. Empty for a
    model without a second layer.
    """
    memories = {}
    for name, values in {
        "output_recall": data["output_recall"].values[:, 1:],
        "trigger_recall": data["trigger_recall"].values,
        "previous_recall_early": data["previous_recall_early"].values[:, 0],
    }.items():
        each = values.reshape(len(values), -1)
        each = each[:, np.isfinite(each).all(axis=0)]
        if each.size:
            memories[name] = each[:, each[-1].argmax()]
    return memories


def formed_at(data: xr.Dataset) -> dict[str, int | None]:
    """First snapshot (index) from which on each memory stays above its threshold (`FORMED`); None: never."""
    formed: dict[str, int | None] = {}
    for name, values in best_memories(data).items():
        below = np.flatnonzero(values <= FORMED[name])
        first = int(below[-1]) + 1 if len(below) else 0
        formed[name] = first if first < len(values) else None
    return formed


def _charts(run: ReportedRun) -> list[Chart]:
    data, tokens = run.data, run.tokens
    labels, starts = [str(name) for name in data["label"].values], formed_at(data)
    memories = []
    for colour, (name, values) in enumerate(best_memories(data).items()):
        memories.append(Series(label=_WORDS[name], x=tokens, y=values, colour=colour))
        if (start := starts[name]) is not None:
            at = slice(start, start + 1)
            label = f"formed: {_WORDS[name]}"
            memories.append(Series(label=label, x=tokens[at], y=values[at], dots=True, colour=colour, in_legend=False))
    new, again = labels.index("output_new"), labels.index("output_again")
    label = "accuracy after a trigger seen before"
    memories.append(Series(label=label, x=tokens, y=data["label_top1"].values[:, again], colour=6, width=2))
    guess = float(np.log(N_CHARACTERS - run.config.data.options_of(TriggersOptions).n_triggers))
    losses = [
        Series(label="all tokens", x=tokens, y=data["loss_curve"].values, colour=3),
        Series(label="after a trigger new in the row", x=tokens, y=data["label_loss"].values[:, new], colour=5),
        Series(label="after a trigger seen before", x=tokens, y=data["label_loss"].values[:, again], colour=6),
        level(run, guess, label="any character but triggers", colour=5),
    ]
    share = Axis(label="share right", range=SHARE)
    return [
        Chart(title="memory recall; dots: formed", x=TOKENS, y=share, series=memories, bands=run.bands, legend=True),
        Chart(title="loss", x=TOKENS, y=Axis(label="loss (nats)"), series=losses, bands=run.bands, legend=True),
    ]


FIGURE = RunFigure(
    name="triggers",
    title="Bigrams with triggers",
    shows="What the matrices of the best heads bring back of what they should store, what it is for, and losses; dots: "
    "where a memory has formed.",
    look_for="The output's memory comes first, then the trigger's, then the previous token's.",
    source="triggers",
    needs=("output_recall", "trigger_recall", "previous_recall_early", "label_top1", "label_loss", "loss_curve"),
    chart=_charts,
)
