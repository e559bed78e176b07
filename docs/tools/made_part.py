"""What `laws.py` and `seeds.py` share: the part of a page between a tool's marks, and a small picture beside it."""

from pathlib import Path
from typing import Any

from PIL import Image

from icl_jax.report.figures.over_members import ReportedMembers
from icl_jax.report.pictures import save_picture

_COLOURS = 32


def replace_part(page: Path, tool: str, made: str) -> None:
    """Put what is made between the tool's marks in the page. Raises ValueError for a page without them."""
    begin, end = f"<!-- from here on by docs/tools/{tool} -->", "<!-- up to here -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n\n{made}\n\n{end}{after}", encoding="utf-8")


def save_small(figure: Any, runs: list[ReportedMembers], picture: Path, width: int) -> None:
    """The figure, so many pixels wide and in few colours; none where runs have nothing to show."""
    if save_picture(figure, runs, picture):
        with Image.open(picture) as drawn:
            size = width, round(drawn.height * width / drawn.width)
            small = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(_COLOURS)
        small.save(picture, optimize=True)
