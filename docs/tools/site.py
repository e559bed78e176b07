"""What the site has beside the pages of docs/: the README, the reference, and the source files that pages link to.

A hook of mkdocs. Links of the pages are those of the checkout (`../icl_jax/data/corpus.py`), so that they
work there too.
"""

import ast
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[2]
_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
_CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_ROOMS = {
    "icl_jax": "Runs",
    "icl_jax.analysis": "Measuring",
    "icl_jax.config": "Configs",
    "icl_jax.data": "Data",
    "icl_jax.rundir": "The run directory",
    "icl_jax.report": "The report",
}
_OF_FILES = {
    "What is opened": ["icl_jax.analysis.opened_run.OpenedRun", "icl_jax.analysis.probe.Probe"],
    "Adding to it": [
        "icl_jax.measures.measurement",
        "icl_jax.data.corpus",
        "icl_jax.data.corpora.generated",
        "icl_jax.report.chart",
        "icl_jax.report.figures.figure",
    ],
    "The model": ["icl_jax.model.forward", "icl_jax.model.loss", "icl_jax.maths.icl_score"],
}


def public_names(package: str) -> list[str]:
    """Where each name that a package offers is defined, as `module.name`: what its `__init__.py` imports as itself."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in imported for alias in node.names}
    return sorted((name for name in names if name.startswith("icl_jax.")), key=lambda name: name.split(".")[-1].lower())


def reference() -> str:
    """A page with a section for every package with public names; mkdocstrings fills in signatures and docstrings."""
    parts = [
        "# Python reference\n\nArrays carry their shapes in their types; letters are those of `icl_jax/config/axes.py`."
    ]
    for package, title in _ROOMS.items():
        names = "\n\n".join(f"::: {name}" for name in public_names(package))
        parts.append(f"## {title}\n\n`import {package}`\n\n{names}")
    for title, modules in _OF_FILES.items():
        parts.append(f"## {title}\n\n" + "\n\n".join(f"::: {module}" for module in modules))
    return "\n\n".join(parts) + "\n"


def _source(path: str) -> str:
    """A file, or the list of a folder, as a page."""
    full = ROOT / path
    if full.is_dir():
        names = sorted(
            child.name + "/" * child.is_dir() for child in full.iterdir() if not child.name.startswith((".", "_"))
        )
        return f"# {path}/\n\n" + "\n".join(f"- {name}" for name in names) + "\n"
    kind = {".py": "python", ".toml": "toml", ".ipynb": "json"}.get(full.suffix, "text")
    return f"# {path}\n\n````{kind}\n{full.read_text(encoding='utf-8')}\n````\n"


def _translated(text: str, folder: str, page: str, sources: set[str]) -> str:
    """Links of a file of the checkout in `folder` as links of the site's page; files linked to are noted."""

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        home = {name: page for page, name in _PAGES.items()}
        if path in home:
            new = home[path]
        elif path.startswith("docs/") and not path.endswith(".py"):
            new = path.removeprefix("docs/")
        else:
            if not (ROOT / path).exists():
                raise FileNotFoundError(f"{page}: links to {match[2]}, which is not there")
            sources.add(path)
            new = f"source/{path}.md"
        relative = os.path.relpath(new, posixpath.dirname(page) or ".")
        return f"{match[1]}{relative}{'#' * bool(anchor)}{anchor}{match[3]}"

    # Code is left as it is.
    parts = _CODE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def on_files(files: "Files", config: Any) -> "Files":
    """Add the pages that are made; all links are translated here, so that the files that they need are known."""
    from mkdocs.structure.files import File

    sources: set[str] = set()
    texts = {
        page: _translated((ROOT / name).read_text(encoding="utf-8"), "", page, sources) for page, name in _PAGES.items()
    }
    for file in files.documentation_pages():
        texts[file.src_uri] = _translated(file.content_string, "docs", file.src_uri, sources)
    texts["reference.md"] = reference()
    for page, text in texts.items():
        if (old := files.get_file_from_path(page)) is not None:
            files.remove(old)
        files.append(File.generated(config, page, content=text))
    for path in sources:
        files.append(File.generated(config, f"source/{path}.md", content=_source(path)))
    return files
