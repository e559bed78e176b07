"""When a kind of answer is learned: the tokens after which its mean probability first reaches 0.9.

`answer_tokens` [label, examples] of `answer_prob`, `answer_tokens_all` [label] of `answer_prob_all`; on the line
between the snapshots before and after. NaN where it is never reached. Source: ours.
"""

import numpy as np
import xarray as xr

from icl_jax.measures.measurement import Context, Derived, Variable

LEVEL = 0.9


def first_reached(tokens: np.ndarray, curves: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Tokens at which curves [snapshot, ...] first reach the level; NaN: never. float64, without the first axis."""
    flat = curves.reshape(len(curves), -1).astype(np.float64)
    found = np.full(flat.shape[1], np.nan)
    for i, curve in enumerate(flat.T):
        at = np.flatnonzero(curve >= level)
        if len(at) and at[0] == 0:
            found[i] = tokens[0]
        elif len(at):
            before, after = at[0] - 1, at[0]
            share = (level - curve[before]) / (curve[after] - curve[before])
            found[i] = tokens[before] + share * (tokens[after] - tokens[before])
    return found.reshape(curves.shape[1:])


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    tokens = dataset["tokens"].values
    return {
        "answer_tokens": first_reached(tokens, dataset["answer_prob"].values),
        "answer_tokens_all": first_reached(tokens, dataset["answer_prob_all"].values),
    }


_NEVER = "0.9 is not reached"

DERIVED = Derived(
    name="answers_learned",
    source="ours",
    needs=("answer_prob", "answer_prob_all"),
    variables={
        "answer_tokens": Variable(("label", "examples"), "1", "tokens when answer_prob first reaches 0.9", _NEVER),
        "answer_tokens_all": Variable(("label",), "1", "tokens when answer_prob_all first reaches 0.9", _NEVER),
    },
    derive=derive,
)
