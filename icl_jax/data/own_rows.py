"""The corpora of a run whose members differ in `data.seed`: rows of their own for each."""

import hashlib
from typing import Any

from icl_jax.data.corpus import Corpus


class OwnRows:
    """One corpus for each of `Config.row_seeds`, in their order; what is the same in all, the first answers."""

    def __init__(self, corpora: tuple[Corpus, ...]) -> None:
        self.corpora = corpora
        self.fingerprint = hashlib.sha256("".join(each.fingerprint for each in corpora).encode()).hexdigest()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.corpora[0], name)


def each_corpus(corpus: Corpus) -> tuple[Corpus, ...]:
    """The corpora of members, or the one of a run."""
    return corpus.corpora if isinstance(corpus, OwnRows) else (corpus,)
