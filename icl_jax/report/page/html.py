"""One self-contained page: template, style, script, plotting library and data in a single file."""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from typing import Any

# What could end the element or the line of a script; in JSON they only occur inside strings.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def script_json(data: object) -> str:
    """JSON that stands safely inside a script element. Raises ValueError for NaN, which JSON does not have."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def render_page(data: dict[str, Any]) -> str:
    """The page. Its policy allows exactly its own scripts and no connection."""
    page = resources.files("icl_jax.report") / "page"
    style, script = ((page / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    plotly = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    parts = {
        "title": html.escape(f"icl_jax: {data['title']}"),
        "policy": _policy(plotly, script),
        "style": style,
        "data": script_json(data),
        "plotly": plotly,
        "script": script,
    }
    template = (page / "page.html").read_text(encoding="utf-8")
    # One pass over the template: what is put in is never looked at for places.
    return re.sub(r"\{\{ (\w+) \}\}", lambda place: parts[place[1]], template)


def _policy(*scripts: str) -> str:
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
