"""One writer at a time: who trains or imports holds the run directory."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from icl_jax.config import UserError
from icl_jax.rundir.files import is_bucket


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[None]:
    """Hold the run directory against a second process of this machine that writes into it.

    The kernel drops the lock with the process, so a killed run leaves nothing to clean up. Bucket paths are not
    locked. Raises UserError where it is held, or cannot be written.
    """
    if is_bucket(path):
        yield
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        lock = (Path(path) / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{path}: cannot write the run directory: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another process is writing into this run directory") from None
        yield
