"""What the processes of one training tell each other outside of a step."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from icl_jax.config import UserError

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the process that writes the run directory and talks to the user."""
    return jax.process_index() == 0


def from_all(values: np.ndarray) -> np.ndarray:
    """The values of every process, [process, ...]. All must call it."""
    if jax.process_count() == 1:
        return values[None]
    return np.asarray(multihost_utils.process_allgather(values))


def all_or_none(what: str, work: Callable[[], T]) -> T:
    """Do this process's part of some work that the others wait for. What fails on one, in any way, fails on all.

    Raises what was raised here, or UserError: "process 0 `what`", such as "cannot read the corpus".
    """
    failure: BaseException | None = None
    try:
        result = work()
    except BaseException as error:
        failure = error
    has_failed = from_all(np.array(failure is not None))
    if failure is not None:
        raise failure
    if has_failed.any():
        raise UserError(f"process {int(np.argmax(has_failed))} {what}; its message tells why")
    return result
