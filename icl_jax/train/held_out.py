"""What a new run takes along from its corpus for analysis."""

import numpy as np

from icl_jax.config import Config
from icl_jax.data import Corpus, row_ids
from icl_jax.data.corpora.markov import MarkovCorpus
from icl_jax.rundir.held_out import MAX_COUNTED_VOCAB, HeldOut, n_rows_kept

_MAX_COUNTED_TOKENS = 2**21


def take_held_out(config: Config, corpus: Corpus) -> HeldOut:
    """Held-out rows, what is known of them, tokens for random sequences and, for a small vocabulary, bigram counts."""
    n_rows = n_rows_kept(corpus.n_held_out, config.model.n_ctx)
    rows = corpus.held_out(n_rows)
    labels = corpus.held_out_labels(n_rows) if corpus.label_names else None
    vocab_size = config.model.vocab_size
    counts = _bigram_counts(config, corpus) if vocab_size <= MAX_COUNTED_VOCAB else None
    chains = corpus.held_out_chains(n_rows) if isinstance(corpus, MarkovCorpus) else None
    return HeldOut(rows, corpus.probe_tokens(), int(corpus.bos_id), counts, corpus.label_names, labels, chains)


def _bigram_counts(config: Config, corpus: Corpus) -> np.ndarray:
    """How often each token follows each other in the rows of the first steps, up to two million tokens."""
    vocab_size = config.model.vocab_size
    n_steps = min(config.train.n_steps, -(-_MAX_COUNTED_TOKENS // config.tokens_per_step))
    counts = np.zeros(vocab_size * vocab_size, np.int64)
    for step in range(n_steps):
        rows = corpus.rows(row_ids(config.data.seed, step, config.train.batch_size, corpus.n_rows))
        pairs = rows[:, :-1].astype(np.int64) * vocab_size + rows[:, 1:]
        counts += np.bincount(pairs.reshape(-1), minlength=len(counts))
    return counts.reshape(vocab_size, vocab_size).astype(np.uint32)
