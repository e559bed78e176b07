"""Names of the measurements, read off the files of this folder: importing those takes JAX, and seconds."""

import re
from pathlib import Path

_DECLARED = re.compile(r"\b(?:Measurement|Derived)\(\s*name=\"(\w+)\"")


def measurement_names() -> list[str]:
    """What `icl_jax.measures.table.TABLE` can hold, by file."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [name for file in files for name in _DECLARED.findall(file.read_text(encoding="utf-8"))]
