"""Small files that are replaced whole, so that a reader or a kill never meets half of one."""

from etils import epath


def replace_text(path: epath.Path, text: str) -> None:
    """Write a file beside `path` and move it over `path`."""
    partial = path.parent / f".{path.name}.partial"
    partial.write_text(text)
    partial.replace(path)
