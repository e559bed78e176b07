"""Which interventions are on at a step: what the config says, and when the first induction head was seen."""

import numpy as np
from jaxtyping import Bool, Float, Int

from icl_jax.config import Config
from icl_jax.config.interventions import HEAD_THRESHOLD


def induction_heads(prefix_matching: Float[np.ndarray, "N H"]) -> Bool[np.ndarray, "N H"]:
    """Those whose prefix matching reaches `HEAD_THRESHOLD`; none of a member that has failed."""
    return np.nan_to_num(prefix_matching, nan=-1.0) >= HEAD_THRESHOLD


def first_seen(
    probe_steps: Int[np.ndarray, " P"], prefix_matching: Float[np.ndarray, "P N H"]
) -> tuple[int, Bool[np.ndarray, "N H"]] | None:
    """The step of the first probe that saw an induction head, and which heads it saw; None where none has."""
    for step, score_NH in zip(probe_steps, prefix_matching, strict=True):
        if (heads := induction_heads(score_NH)).any():
            return int(step), heads
    return None


def are_on(config: Config, steps: Int[np.ndarray, " S"], head_step: int | None) -> Float[np.ndarray, "S K"]:
    """1 where an intervention of the config is on, else 0."""
    found = [[one.is_on(int(step), head_step) for one in config.intervene] for step in steps]
    return np.array(found, np.float32).reshape(len(steps), len(config.intervene))
