"""One writer at a time: who trains or imports holds the run directory, who analyzes its analysis_parts."""

import contextlib
import errno
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from etils import epath

from icl_jax.config import UserError
from icl_jax.rundir.files import is_bucket

_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def exclusive(path: str | epath.Path, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold a folder against a second process of this machine that writes into it.

    The kernel drops the lock with the process, so a killed run leaves nothing to clean up. Bucket paths are not
    locked, nor are folders of file systems that know no locks. Where it is held, `wait` is called and the holder's end
    waited for. Raises UserError where it is held and there is no `wait`, or where the folder cannot be written.
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
        except OSError as error:
            if error.errno in _HELD:
                if wait is None:
                    raise UserError(f"{path}: another process is writing into this run directory") from None
                wait()
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
