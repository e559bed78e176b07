"""Small files that are replaced whole, and what a failure of storage says."""

import errno
import os

from etils import epath

from icl_jax.config import UserError
from icl_jax.telling import is_unicode, printable


def is_bucket(path: epath.Path | str) -> bool:
    """Whether this is the URL of an object store, where there are no folders and nothing is renamed in one go."""
    return "://" in str(path)


def check_path(path: str) -> None:
    """Raise UserError for a path that not every library can hold, by its own bytes or those of where it lies."""
    whole = path if is_bucket(path) else os.path.abspath(path)
    if not is_unicode(whole):
        raise UserError(f"{printable(whole)}: its name is not UTF-8: must be, that of the folders above it too")
    for character, who in (("\0", "the system"), ("\\", "TensorStore"), ("[", "Orbax")):
        if character in whole:
            raise UserError(
                f"{printable(whole)}: a path must not hold {character!r}: {who} cannot read from such a folder"
            )


def absolute(path: epath.Path) -> epath.Path:
    """As Orbax needs it. `resolve` alone takes the URL of a bucket for a relative path."""
    return path if is_bucket(path) else path.resolve()


def replace_bytes(path: epath.Path, data: bytes) -> None:
    """Write a file beside `path` and move it over `path`, so that a reader or a kill never meets half of one."""
    if is_bucket(path):  # an object appears whole; moving it would be a copy and a removal
        path.write_bytes(data)
        return
    partial = path.parent / f".{path.name}.partial"
    partial.write_bytes(data)
    partial.replace(path)


def replace_text(path: epath.Path, text: str) -> None:
    """`replace_bytes` of a text in UTF-8."""
    replace_bytes(path, text.encode())


# Said by the operating system, and buried by TensorStore deep in its own words.
_STORAGE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE,
)  # fmt: skip
# Said of a path that is not what a program needs it to be.
_PLACE_ERRORS = (errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)


def storage_problem(error: OSError) -> str | None:
    """The path and what the operating system says of it; None where that is no matter of files, or may be a bug."""
    if error.errno not in (*_STORAGE_ERRORS, *_PLACE_ERRORS):
        return None
    said = os.strerror(error.errno)
    path = error.filename2 or error.filename
    return said if path is None else f"{os.fsdecode(path) if isinstance(path, bytes) else path}: {said}"


def reason(error: BaseException) -> str:
    """What an error says, short enough for a message: what the operating system said, or the first line of its text."""
    text = str(error).strip()
    for code in _STORAGE_ERRORS:
        if os.strerror(code) in text:
            return os.strerror(code)
    lines = text.splitlines()
    return lines[0][:300] if lines else type(error).__name__
