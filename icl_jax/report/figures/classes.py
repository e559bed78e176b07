"""Few-shot classes (Reddy 2024): accuracy on the three kinds of held-out rows, and the head that looks labels up."""

import numpy as np

from icl_jax.data.corpora.classes import ClassesOptions
from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import SHARE, TOKENS, RunFigure, level
from icl_jax.report.reported_run import ReportedRun

_WORDS = {
    "new_class": "new classes, in the context",
    "swapped_label": "known classes, labels swapped in the context",
    "in_weights": "known classes, not in the context",
}


def _charts(run: ReportedRun) -> list[Chart]:
    data, tokens = run.data, run.tokens
    labels = [str(name) for name in data["label"].values]
    accuracy = [
        Series(label=text, x=tokens, y=data["label_top1"].values[:, labels.index(name)], colour=colour)
        for colour, (name, text) in enumerate(_WORDS.items())
    ]
    guess = run.config.data.options_of(ClassesOptions).burstiness / (run.config.model.n_ctx // 3 - 1)
    accuracy.append(level(run, guess, label="any label of the context", colour=6))
    match = data["label_matching"].values[:, labels.index("new_class")]
    layer, head = np.unravel_index(match[-1].argmax(), match.shape[1:])
    label = f"to the labels of the same last letter, head {layer}.{head}"
    attention = [Series(label=label, x=tokens, y=match[:, layer, head], colour=3)]
    right, share = Axis(label="share right", range=SHARE), Axis(label="attention", range=SHARE)
    title = "attention from the last item, new classes"
    return [
        Chart(title="the last label", x=TOKENS, y=right, series=accuracy, bands=run.bands, legend=True),
        Chart(title=title, x=TOKENS, y=share, series=attention, bands=run.bands, legend=True),
    ]


FIGURE = RunFigure(
    name="classes",
    title="Few-shot classes",
    shows="Accuracy on the last label of three kinds of held-out rows, and attention of the head that looks labels up.",
    look_for="With many classes new ones become right after a plateau at any label of the context; with few only known "
    "ones do.",
    source="classes",
    needs=("label_top1", "label_matching"),
    chart=_charts,
)
