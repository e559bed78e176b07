"""Documents out of files: the standard library's source, and the user's text files."""

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

from icl_jax.config import UserError
from icl_jax.data.corpus import Progress
from icl_jax.data.text.reading import find_files, identity_of, read_text

_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__"}


class Documents(Protocol):
    """Texts in a fixed order, which can be gone through again and again."""

    @property
    def n_bytes(self) -> int:
        """Size of the documents' files in bytes: about that of the documents, for showing progress."""
        ...

    @property
    def identity(self) -> str:
        """Changes whenever a document may have changed; cheap, and good on this machine only."""
        ...

    @property
    def is_cut(self) -> bool:
        """Whether the BPE trained on them encodes a long document in pieces, as it did when numbers were published."""
        ...

    def __iter__(self) -> Iterator[str]:
        """The documents. Raises UserError for one that cannot be read."""
        ...


class FileDocuments:
    """One document per file, blank ones left out.

    ``undecodable`` says what to do with a file that is not UTF-8: "skip" it and take all others as they stand, or
    raise a UserError that names it.
    ``drop_duplicates`` leaves out a document whose exact text came before.
    """

    def __init__(
        self,
        paths: list[Path],
        *,
        undecodable: Literal["skip", "error"],
        drop_duplicates: bool = False,
        is_cut: bool = False,
    ) -> None:
        self._paths = paths
        self._skip_undecodable = undecodable == "skip"
        self._drop_duplicates = drop_duplicates
        self.is_cut = is_cut
        self._files = [identity_of(path) for path in paths]
        self.n_bytes = sum(file.size for file in self._files)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the files' paths, sizes, inodes and times of change."""
        listing = json.dumps([self._skip_undecodable, self._drop_duplicates, self._files])
        return hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()

    def _read(self, path: Path) -> str | None:
        if not self._skip_undecodable:
            return read_text(path)
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror}") from None

    def __iter__(self) -> Iterator[str]:
        """The documents in the order of the paths."""
        seen: set[bytes] = set()
        for path in self._paths:
            text = self._read(path)
            if text is None or not text.strip():
                continue
            if self._drop_duplicates:
                digest = hashlib.sha256(text.encode()).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            yield text


def measure_documents(documents: Documents, progress: Progress | None = None) -> tuple[str, int]:
    """SHA-256 (hex) over the documents' texts in order, the same wherever they lie, and their size in bytes."""
    total = hashlib.sha256()
    n_bytes = 0
    for text in documents:
        data = text.encode()
        total.update(hashlib.sha256(data).digest())
        n_bytes += len(data)
        if progress is not None:
            progress(min(n_bytes, documents.n_bytes), documents.n_bytes, "reading")
    return total.hexdigest(), n_bytes


def python_documents(folder: Path | None = None) -> FileDocuments:
    """The .py files of the running interpreter's standard library (or ``folder``), by relative path.

    Installed packages are left out, and so are files that are not UTF-8 and copies of a file already taken.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_STDLIB]
        paths = [Path(parent, name) for name in names if name.endswith(".py")]
        found += [(path.relative_to(root).as_posix(), path) for path in paths if path.is_file()]
    if not found:
        raise UserError(f"data.source = 'python': no .py files of the standard library in {root}")
    return FileDocuments([path for _, path in sorted(found)], undecodable="skip", drop_duplicates=True, is_cut=True)


def text_documents(pattern: str) -> FileDocuments:
    """The files of a path, a glob (``**`` spans folders) or a folder (its .txt files at any depth), by path.

    Raises UserError if none matches.
    """
    paths, why = find_files(pattern)
    if not paths:
        raise UserError(f"data.source = {'text:' + pattern!r}: {why}")
    return FileDocuments(paths, undecodable="error")
