"""What tools of pages share: lines of a table, what stands between two marks, and a small picture beside a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from icl_jax.report.figures.over_members import ReportedMembers
from icl_jax.report.pictures import save_picture

_COLOURS = 32


def replace_part(page: Path, tool: str, made: str) -> None:
    """Put what is made between the tool's marks in the page. Raises ValueError for a page without them."""
    begin, end = f"<!-- from here on by docs/tools/{tool} -->", "<!-- up to here -->"
    page.write_text(replace_between(page.read_text(encoding="utf-8"), begin, end, made), encoding="utf-8")


def replace_between(text: str, begin: str, end: str, made: str) -> str:
    """The text with what is made between two marks. Raises ValueError where one is not there, or twice."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{made}\n\n{end}{after}"


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(cells), row(["---"] * len(cells))]


def save_small(figure: Any, runs: list[ReportedMembers], picture: Path, width: int) -> None:
    """The figure, so many pixels wide and in few colours; none where runs have nothing to show."""
    if save_picture(figure, runs, picture):
        with Image.open(picture) as drawn:
            size = width, round(drawn.height * width / drawn.width)
            small = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(_COLOURS)
        small.save(picture, optimize=True)
