"""How often whole answers are right, by what they show and by how many examples stand before them in their row.

On rows of the `mixture` corpus, each of one kind: an answer is tokens of one label, one after another (the digits of a
sum, the words of a sentence), and the examples before it are the answers before it in its row. By label and by
number of examples, 0 to 8, the last for 8 and more:

============  =================================================================================
answer_prob   mean probability of the whole answer, given what stands before it; [0, 1]
answer_sem    its standard error over answers, which are taken as independent
answer_right  share of answers each token of which is likelier than all others, [0, 1]
============  =================================================================================

`answer_prob_all` and `answer_right_all`: the same of a label's answers together. Source: ours.
"""

from typing import NamedTuple

import numpy as np

from icl_jax.data.corpora.mixture import examples_before
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable

MOST_EXAMPLES = 8


class Answers(NamedTuple):
    """The whole answers of some rows, in order."""

    row: np.ndarray
    start: np.ndarray
    """Position of its first token."""
    end: np.ndarray
    """Behind its last token."""
    label: np.ndarray
    n_before: np.ndarray
    """Examples before it, at most MOST_EXAMPLES."""


def answers_of(labels: np.ndarray) -> Answers:
    """Of labels [row, position]. An answer that the row's end may have cut off is left out."""
    change = np.ones(labels.shape, bool)
    change[:, 1:] = labels[:, 1:] != labels[:, :-1]
    row, start = np.nonzero(change & (labels > 0))
    n_tokens = labels.shape[1]
    ends = np.where(change, np.arange(n_tokens), n_tokens)
    # Of each position the first change behind it.
    behind = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    behind = np.concatenate([behind[:, 1:], np.full((len(labels), 1), n_tokens)], axis=1)
    end = behind[row, start]
    n_before = np.minimum(examples_before(labels)[row, start], MOST_EXAMPLES)
    found = Answers(row, start, end, labels[row, start], n_before)
    is_whole = end < n_tokens
    return Answers(*(part[is_whole] for part in found))


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    assert context.labels is not None
    found = answers_of(context.labels)
    n_snapshots, n_labels = len(seen["loss"]), len(context.label_names)

    def over_answers(of_token: np.ndarray) -> np.ndarray:
        """Sums [snapshot, answer] of values [snapshot, row, T], entry t being about token t + 1."""
        total = np.zeros((n_snapshots, of_token.shape[1], of_token.shape[2] + 2))
        np.cumsum(of_token, axis=2, dtype=np.float64, out=total[:, :, 2:])
        return total[:, found.row, found.end] - total[:, found.row, found.start]

    prob = np.exp(-over_answers(seen["loss"]))
    right = over_answers(seen["rank"] != 1) == 0
    shape = (n_snapshots, n_labels, MOST_EXAMPLES + 1)
    by = {name: np.full(shape, np.nan, np.float32) for name in ("prob", "sem", "right")}
    total = {name: np.full(shape[:2], np.nan, np.float32) for name in ("prob", "right")}
    for label in range(n_labels):
        of_label = found.label == label + 1
        if of_label.any():
            total["prob"][:, label], total["right"][:, label] = prob[:, of_label].mean(1), right[:, of_label].mean(1)
        for n in range(MOST_EXAMPLES + 1):
            here = of_label & (found.n_before == n)
            if here.any():
                by["prob"][:, label, n], by["right"][:, label, n] = prob[:, here].mean(1), right[:, here].mean(1)
            if here.sum() > 1:
                by["sem"][:, label, n] = prob[:, here].std(1, ddof=1) / np.sqrt(here.sum())
    return {f"answer_{name}": values for name, values in by.items()} | {
        f"answer_{name}_all": values for name, values in total.items()
    }


def why_not(context: Context) -> str | None:
    if context.config.data.source != "mixture":
        return f"rows are not of examples; data.source = {context.config.data.source!r}"
    return None


_NONE = "no held-out answer of the label has so many examples before it"
_BY = ("label", "examples")

MEASUREMENT = Measurement(
    name="answers",
    source="ours; labels of the corpus",
    variables={
        "answer_prob": Variable(_BY, "1", "mean probability of the whole answer, by examples before it; [0, 1]", _NONE),
        "answer_sem": Variable(_BY, "1", "its standard error over answers; 0 or more", f"{_NONE}, or one answer alone"),
        "answer_right": Variable(_BY, "1", "share of answers all right, by examples before them; [0, 1]", _NONE),
        "answer_prob_all": Variable(("label",), "1", "mean probability of the whole answer; [0, 1]", "no answer"),
        "answer_right_all": Variable(("label",), "1", "share of answers all right; [0, 1]", "no answer"),
    },
    look=lambda at: {"loss": at.loss, "rank": at.rank},
    finish=finish,
    why_not=why_not,
)
