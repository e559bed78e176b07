"""Names of the measurements, read off the files of this folder: importing those takes JAX, and seconds."""

import re
from pathlib import Path

_IN_TABLE = re.compile(r"^    \*?(\w+)\.\w+,$", re.MULTILINE)
_DECLARED = re.compile(r"\b(?:Measurement|Derived)\(\s*name=\"(\w+)\"")


def measurement_names() -> list[str]:
    """Those of `icl_jax.measures.table.TABLE`, in its order."""
    folder = Path(__file__).parent
    modules = dict.fromkeys(_IN_TABLE.findall((folder / "table.py").read_text(encoding="utf-8")))
    return [
        name for module in modules for name in _DECLARED.findall((folder / f"{module}.py").read_text(encoding="utf-8"))
    ]
