"""Held-out tokens by what an induction head would say of them.

With the prefix of token t the token t - 1 before it:

=================  =====================================================================================
induction_correct  the prefix occurred earlier in the row, and at least once token t followed it
induction_wrong    the prefix occurred earlier, but something else followed it each time
new_prefix         the prefix did not occur earlier
=================  =====================================================================================

Across the phase change the loss of the first falls most, that of the second rises, or falls least, and that of the
third hardly moves. Source: ours, an aggregate of the token-level heat maps of Olsson et al. 2022 ("leys" after a
second "Durs" improves, "Potter" after "Mrs", which stood before "Dursley", gets worse).
"""

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from icl_jax.measures.measurement import Context, Derived, Variable

CLASSES = {
    "induction_correct": "tokens that followed their prefix earlier in the row",
    "induction_wrong": "tokens whose prefix occurred earlier, but was followed by others",
    "new_prefix": "tokens whose prefix did not occur earlier in the row",
}
"""In the order of their numbers."""


def classify_tokens(rows: Int[np.ndarray, "B tokens"]) -> Int[np.ndarray, "B T"]:
    """Class of each predicted token of each row: 0, 1 or 2 in the order of `CLASSES`."""
    classes = np.full((rows.shape[0], rows.shape[1] - 1), 2, np.int8)
    for b, row in enumerate(rows.tolist()):
        followers: dict[int, set[int]] = {}
        for t in range(len(row) - 1):
            seen = followers.setdefault(row[t], set())
            if seen:
                classes[b, t] = 0 if row[t + 1] in seen else 1
            seen.add(row[t + 1])
    return classes


def class_means(loss: Float[np.ndarray, "S B T"], classes: Int[np.ndarray, "B T"]) -> dict[str, np.ndarray]:
    """Mean loss of each class at each snapshot, nats; NaN for a class without tokens."""
    means = {}
    for number, name in enumerate(CLASSES):
        is_here = classes == number
        none = np.full(len(loss), np.nan, np.float32)
        means[f"{name}_loss"] = loss[:, is_here].mean(axis=1) if is_here.any() else none
    return means


def derive(context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    before, after = int(dataset["step_before"]), int(dataset["step_after"])
    classes = classify_tokens(context.held_out)
    answer = {}
    for number, name in enumerate(CLASSES):
        loss = dataset[f"{name}_loss"]
        answer[f"{name}_change"] = np.asarray(loss.sel(snapshot=after).values - loss.sel(snapshot=before).values)
        answer[f"{name}_share"] = np.asarray(np.mean(classes == number))
    answer["token_loss_change"] = (
        dataset["token_loss"].sel(snapshot=after).values - dataset["token_loss"].sel(snapshot=before).values
    )
    rows, positions = context.sampled
    answer["token_class"] = classes[rows, positions]
    return answer


DERIVED = Derived(
    name="token_classes",
    source="ours, after Olsson et al. 2022, token-level heat maps",
    needs=("token_loss", *(f"{name}_loss" for name in CLASSES), "step_before", "step_after"),
    variables={
        "token_loss_change": Variable(("token",), "nats", "loss of single tokens, after minus before the phase change"),
        "token_class": Variable(("token",), "1", "0 induction-correct, 1 induction-wrong, 2 new prefix"),
        **{
            f"{name}_change": Variable(
                (), "nats", f"loss of {text}, after minus before", "no held-out token of this class"
            )
            for name, text in CLASSES.items()
        },
        **{
            f"{name}_share": Variable((), "1", f"share of {text} among held-out tokens")
            for name, text in CLASSES.items()
        },
    },
    derive=derive,
)
