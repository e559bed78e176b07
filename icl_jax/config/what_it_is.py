"""What lies at a path that a user names. A pipe or a device is never read: it may have no end, or never begin."""

import os
import stat
from pathlib import Path

from icl_jax.config.errors import UserError


def what_it_is(path: str | Path) -> str:
    """A word for what a path leads to: ``file``, ``folder``, ``pipe``, ...; empty where there is nothing."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "symbolic link that leads nowhere" if os.path.islink(path) else ""
    kinds = {"file": stat.S_ISREG, "folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return next((kind for kind, is_kind in kinds.items() if is_kind(mode)), "device")


def check_readable(path: str | Path, said: str) -> None:
    """Raise UserError, beginning with `said`, for what is no file and says nothing itself when it is opened."""
    kind = what_it_is(path)
    if kind not in ("file", "folder", ""):
        raise UserError(f"{said}: is a {kind}: must be a file")
