"""Where a folder can be written."""

from pathlib import Path

from icl_jax.config import UserError
from icl_jax.rundir.files import is_bucket


def free_folder(out: str) -> Path:
    """The folder `--out`, which may be there and empty. Raises UserError otherwise."""
    if is_bucket(out):
        raise UserError(f"--out = {out!r}: must be a local folder")
    folder = Path(out).expanduser().absolute()
    if folder.is_dir() and (found := sorted(folder.iterdir())):
        raise UserError(f"--out = {out!r}: holds {found[0].name!r}: must be a new or an empty folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out = {out!r}: is a file: must be a new or an empty folder")
    return folder
