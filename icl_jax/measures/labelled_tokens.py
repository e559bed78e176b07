"""How well the model predicts the held-out tokens that the corpus labels: its behaviours, one by one.

A corpus that is made from rules knows what each of its tokens shows, for instance a phrase that is said again. For
every label, over all held-out tokens that carry it:

==========  ==============================================================================
label_loss  mean loss, nats
label_prob  mean probability of the right token, [0, 1]; 1 / V for a uniform prediction
label_top1  share of tokens that no other token is at least as likely as, [0, 1]
label_rank  mean rank of the right token, 1 the likeliest, [1, V]; ties count half
==========  ==============================================================================

The first 1,024 tokens of each label are kept one by one (`labelled_prob`, `labelled_rank`), for intervals.
Source: ours; the behaviours are those of the corpus. NaN for a label that no held-out token carries.
"""

import numpy as np

from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    assert context.labels is not None
    loss_SBT, rank_SBT = seen["loss"], seen["rank"]
    labels_BT = context.labels[:, 1:]
    means: dict[str, list[np.ndarray]] = {"loss": [], "prob": [], "top1": [], "rank": []}
    none = np.full(len(loss_SBT), np.nan, np.float32)
    for number in range(1, len(context.label_names) + 1):
        is_here = labels_BT == number
        loss, rank = loss_SBT[:, is_here], rank_SBT[:, is_here]
        for name, values in {"loss": loss, "prob": np.exp(-loss), "top1": rank == 1, "rank": rank}.items():
            means[name].append(values.mean(axis=1, dtype=np.float32) if is_here.any() else none)
    rows, positions = context.labelled
    return {
        **{f"label_{name}": np.stack(values, axis=1) for name, values in means.items()},
        "labelled_prob": np.exp(-loss_SBT[:, rows, positions]),
        "labelled_rank": rank_SBT[:, rows, positions],
    }


_NO_TOKEN = "no held-out token carries the label"

MEASUREMENT = Measurement(
    name="labelled_tokens",
    source="ours; labels of the corpus",
    variables={
        "label_loss": Variable(("label",), "nats", "mean loss of the tokens of a label; 0 or more", _NO_TOKEN),
        "label_prob": Variable(("label",), "1", "mean probability of the right token, by label; [0, 1]", _NO_TOKEN),
        "label_top1": Variable(("label",), "1", "share of tokens ranked first, by label; [0, 1]", _NO_TOKEN),
        "label_rank": Variable(("label",), "1", "mean rank of the right token, by label; 1 or more", _NO_TOKEN),
        "labelled_prob": Variable(("labelled",), "1", "probability of the right token, token by token; [0, 1]"),
        "labelled_rank": Variable(("labelled",), "1", "rank of the right token, token by token; 1 or more"),
    },
    look=lambda at: {"loss": at.loss, "rank": at.rank},
    finish=finish,
    why_not=lambda context: None if context.labels is not None else "the corpus does not label its tokens",
)
