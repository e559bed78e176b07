"""Rows of tokens for training: corpora, the order of rows and prefetched batches. NumPy only."""

from icl_jax.data.batches import read_batches
from icl_jax.data.corpus import Corpus, Progress
from icl_jax.data.opening import open_corpus, open_shown
from icl_jax.data.order import row_ids
from icl_jax.data.own_rows import each_corpus

__all__ = ["Corpus", "Progress", "each_corpus", "open_corpus", "open_shown", "read_batches", "row_ids"]
