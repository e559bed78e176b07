"""From losses under ablation to what the head is worth, per kind of ablation and head:

- loss effect: mean loss with the head taken away, minus without; positive: the head helps.
- ICL effect: windowed ICL score with it taken away, minus without; positive: in-context learning gets worse.
- along the change: with u the unit vector from the token losses before the phase change to those after it,
  ``<v_ablated - v, u>``, over the length of the before-and-after vector. -1: taking the head away undoes the phase
  change, 0: it does nothing to it. (The paper plots the length itself; the share can be compared among runs.)

Source: Olsson et al. 2022, Model Analysis Table, "Ablation to before-and-after vector" and "Ablation attribution to
in-context learning score". Departures: the windowed score; fraction in place of length.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float

from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures.ablation import KINDS
from icl_jax.measures.measurement import Context, Derived, Variable


def along_change(
    ablated: Float[np.ndarray, "*#S token"], intact: Float[np.ndarray, "*#S token"],
    before: Float[np.ndarray, " token"], after: Float[np.ndarray, " token"],
) -> Float[np.ndarray, "*S"]:  # fmt: skip
    """What ablation adds along the before-and-after vector, as a share of its length; NaN if that is zero."""
    change = after.astype(np.float64) - before
    squared = float(change @ change)
    moved = (ablated.astype(np.float64) - intact) @ change
    return moved / squared if squared else np.full(np.shape(moved), np.nan)


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    intact, tokens = dataset["intact_loss"].values, dataset["intact_token_loss"].values
    steps = list(dataset["selected"].values)
    start, end = (steps.index(int(dataset[name])) for name in ("step_before", "step_after"))
    answer = {}
    for kind in KINDS:
        loss, token_loss = dataset[f"{kind}_loss"].values, dataset[f"{kind}_token_loss"].values
        answer[f"{kind}_loss_effect"] = loss.mean(axis=-1) - intact.mean(axis=-1)[:, None, None]
        answer[f"{kind}_icl_effect"] = icl_windowed(loss) - icl_windowed(intact)[:, None, None]
        share = along_change(token_loss, tokens[:, None, None], tokens[start], tokens[end])
        answer[f"{kind}_along_change"] = share.astype(np.float32)
    return answer


def _variables() -> dict[str, Variable]:
    dims = ("selected", "layer", "head")
    variables = {}
    for kind in KINDS:
        name = kind.replace("_", "-")
        variables[f"{kind}_loss_effect"] = Variable(dims, "nats", f"loss after {name} ablation, minus before")
        variables[f"{kind}_icl_effect"] = Variable(
            dims, "nats", f"windowed ICL score after {name} ablation, minus before"
        )
        text = f"{name} ablation along the before-and-after vector; -1: undoes the phase change"
        variables[f"{kind}_along_change"] = Variable(dims, "1", text, "no loss changed in between")
    return variables


DERIVED = Derived(
    name="ablation_effects",
    source="Olsson et al. 2022, Model Analysis Table",
    needs=(
        "step_before",
        "step_after",
        "intact_loss",
        "intact_token_loss",
        *(f"{k}_{n}" for k in KINDS for n in ("loss", "token_loss")),
    ),
    variables=_variables(),
    derive=derive,
)
