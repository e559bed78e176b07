"""Draw runs beside the changes that were found in them: `python docs/tools/windows.py PICTURE.png CURVES RUN...`.

CURVES: axis labels of the report's figure "changes", such as "ICL score (nats),p(novel_name)"; a run is drawn with
those that it has. The picture is that figure's, shrunk for the docs: 1,000 pixels wide, 24 colours.
"""

import dataclasses
import sys
from pathlib import Path

from PIL import Image

from icl_jax.report.figures import changes
from icl_jax.report.pictures import save_picture
from icl_jax.report.reported_run import open_runs

_WIDTH, _COLOURS = 1000, 24


def draw(path: Path, curves: list[str], runs: list[str]) -> None:
    """Write the picture. Raises ValueError where no run has one of the curves."""
    whole = changes.FIGURE
    some = dataclasses.replace(
        whole, title="", chart=lambda run: [chart for chart in whole.chart(run) if chart.y.label in curves]
    )
    if not save_picture(some, open_runs(runs), path):
        raise ValueError(f"none of {curves} in {runs}")
    with Image.open(path) as drawn:
        size = _WIDTH, round(drawn.height * _WIDTH / drawn.width)
        small = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS).quantize(_COLOURS)
    small.save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:])
