"""The ``manual`` corpus: Python's language manual as ``help()`` prints it, English that comes with the interpreter."""

import hashlib
from collections.abc import Iterator

from icl_jax.config import Config
from icl_jax.config.corpora import CorpusKind
from icl_jax.data.corpora.text import TextCorpus, open_text
from icl_jax.data.corpus import Progress


class ManualDocuments:
    """A document for each topic of the manual, in the order of their names."""

    is_cut = False

    def __init__(self) -> None:
        from pydoc_data.topics import topics

        self._texts = [text for _, text in sorted(topics.items())]
        self.n_bytes = sum(len(text.encode()) for text in self._texts)

    @property
    def identity(self) -> str:
        """SHA-256 (hex) over the texts."""
        return hashlib.sha256("\0".join(self._texts).encode()).hexdigest()

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)


def open_corpus(config: Config, progress: Progress | None = None) -> TextCorpus:
    """Its topics, tokenized. Raises UserError as :func:`icl_jax.data.open_corpus` does."""
    return open_text(ManualDocuments(), config, progress)


CORPUS = CorpusKind(open=open_corpus)
