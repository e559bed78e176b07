"""A member of a run with members: its place, and its part of arrays."""

import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.saved_arrays import SavedArray

MEMBERS = "members"
"""RUN/members/K is the place of member K, whether or not there is a folder."""


def member_of(path: str) -> tuple[str, int] | None:
    """RUN and K of a path RUN/members/K, where RUN is a run directory; None for any other path."""
    place = epath.Path(path)
    run = place.parent.parent
    if (
        place.parent.name != MEMBERS
        or re.fullmatch("[0-9]{1,9}", place.name) is None
        or (place / "config.toml").exists()
    ):
        return None
    return (str(run), int(place.name)) if (run / "config.toml").exists() else None


def of_member(
    arrays: Mapping[str, np.ndarray | SavedArray], index: int, path: epath.Path
) -> dict[str, np.ndarray | SavedArray]:
    """One member's arrays, the member axis in front. Raises UserError that names `path` where it is not there."""
    for name, array in arrays.items():
        if not array.ndim or index >= len(array):
            raise UserError(f"{path}: {name} has the shape {array.shape}: it has no member {index}")
    return {name: array[index] for name, array in arrays.items()}
