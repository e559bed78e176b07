"""Where a folder can be written."""

from pathlib import Path

from icl_jax.config import UserError
from icl_jax.config.what_it_is import what_it_is
from icl_jax.rundir.files import is_bucket


def free_folder(out: str) -> Path:
    """The folder `--out`, which may be there and empty. Raises UserError otherwise."""
    if is_bucket(out):
        raise UserError(f"--out = {out!r}: must be a local folder")
    folder = Path(out).expanduser().absolute()
    if folder.is_dir() and (found := sorted(folder.iterdir())):
        raise UserError(f"--out = {out!r}: holds {found[0].name!r}: must be a new or an empty folder")
    if (kind := what_it_is(folder)) not in ("folder", ""):
        raise UserError(f"--out = {out!r}: is a {kind}: must be a new or an empty folder")
    return folder
