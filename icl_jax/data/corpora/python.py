"""The ``python`` corpus: the source of the running interpreter's standard library."""

from icl_jax.config import Config
from icl_jax.config.corpora import CorpusKind
from icl_jax.data.corpora.text import TextCorpus, open_text
from icl_jax.data.corpus import Progress
from icl_jax.data.text.documents import python_documents


def open_corpus(config: Config, progress: Progress | None = None) -> TextCorpus:
    """Its files, tokenized. Raises UserError as :func:`icl_jax.data.open_corpus` does."""
    return open_text(python_documents(), config, progress)


CORPUS = CorpusKind(open=open_corpus)
