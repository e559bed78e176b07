"""Draw docs/rooms.svg: the rooms of icl_jax and their imports. `python docs/tools/rooms.py` writes it anew.

Rows are the layers of the import contracts in pyproject.toml, arrows the imports that the code holds (those for type
checkers aside). An arrow that follows from others (a to c where a to b and b to c) is left out; rooms of
one layer that import each other are joined by a line.
"""

import html
import sys
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "rooms.svg"
_WIDTH, _ROW, _BOX_W, _BOX_H = 760, 84, 104, 34


def layers() -> list[list[str]]:
    """Rooms of each layer, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = (c for c in contracts if c["type"] == "layers" and c["containers"] == ["icl_jax"])
    return [[room.strip() for room in layer.replace(":", "|").split("|")] for layer in contract["layers"]]


def imports() -> set[tuple[str, str]]:
    """(room, room that it imports), from the code."""
    graph = grimp.build_graph("icl_jax", exclude_type_checking_imports=True, cache_dir=None)
    rooms = {room for layer in layers() for room in layer}
    found = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = tuple([*name.split("."), "", ""][1] for name in (module, imported))
            if pair[0] != pair[1] and set(pair) <= rooms:
                found.add(pair)
    return found


def _reached(arrows: set[tuple[str, str]], start: str) -> set[str]:
    found, new = set(), {start}
    while new:
        new = {b for a, b in arrows if a in new} - found
        found |= new
    return found


def draw() -> str:
    """The picture, as SVG."""
    every = imports()
    # Rooms of one layer that import each other are joined by a line.
    both = {(a, b) for a, b in every if (b, a) in every}
    down = every - both
    arrows = {(a, b) for a, b in down if b not in _reached(down - {(a, b)}, a)}
    centre = {}
    for row, layer in enumerate(layers()):
        for i, room in enumerate(layer):
            centre[room] = (round(_WIDTH * (i + 1) / (len(layer) + 1)), 30 + row * _ROW)
    lines = []
    for a, b in sorted(arrows):
        (x1, y1), (x2, y2) = centre[a], centre[b]
        top, bottom = y1 + _BOX_H // 2, y2 - _BOX_H // 2 - 5
        bend = (bottom - top) // 2
        path = f"M{x1} {top} C{x1} {top + bend} {x2} {bottom - bend} {x2} {bottom}"
        lines.append(f'<path d="{path}" fill="none" stroke="#7a828c" marker-end="url(#to)"/>')
    for a, b in sorted(both):
        (x1, y), (x2, _) = centre[a], centre[b]
        lines.append(f'<path d="M{x1} {y} H{x2}" stroke="#7a828c"/>')
    for room, (x, y) in sorted(centre.items()):
        name = f"{room}/" if (ROOT / "icl_jax" / room).is_dir() else f"{room}.py"
        box = f'x="{x - _BOX_W // 2}" y="{y - _BOX_H // 2}" width="{_BOX_W}" height="{_BOX_H}"'
        lines.append(f'<rect {box} rx="6" fill="#eef3f8" stroke="#0072b2"/>')
        lines.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle">{html.escape(name)}</text>')
    height = 60 + (len(layers()) - 1) * _ROW
    marker = '<marker id="to" viewBox="0 0 6 6" refX="3" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif"',
        ' font-size="15">',
        "<title>The rooms of icl_jax and what they import</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        f'<defs>{marker}<path d="M0 0 6 3 0 6z" fill="#7a828c"/></marker></defs>',
    )
    return "\n".join([*head, *lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)}: written\n")
