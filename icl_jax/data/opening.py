"""From a config to its corpus."""

from icl_jax.config import Config
from icl_jax.data.corpora.classes import ClassesCorpus
from icl_jax.data.corpora.markov import MarkovCorpus
from icl_jax.data.corpora.repeats import RepeatsCorpus
from icl_jax.data.corpus import Corpus, Progress


def open_corpus(config: Config, *, progress: Progress | None = None) -> Corpus:
    """Open the corpus of ``config.data``, preparing its tokens first where the cache does not hold them.

    ``progress(done_bytes, total_bytes, label)`` is called while tokens are prepared. Raises UserError for a source,
    file or tokenizer that cannot be used, or a corpus too small for ``data.held_out_rows``.
    """
    if config.data.source == "repeats":
        return RepeatsCorpus(config)
    if config.data.source == "markov":
        return MarkovCorpus(config)
    if config.data.source == "classes":
        return ClassesCorpus(config)
    # Kept out of runs that have no use for them: they import `tokenizers`.
    if config.data.source == "patterns":
        from icl_jax.data.corpora.patterns import PatternsCorpus

        return PatternsCorpus(config)
    if config.data.source == "stories":
        from icl_jax.data.corpora.stories import StoriesCorpus

        return StoriesCorpus(config)
    if config.data.source == "triggers":
        from icl_jax.data.corpora.triggers import TriggersCorpus

        return TriggersCorpus(config)
    from icl_jax.data.corpora.text import open_text_corpus

    return open_text_corpus(config, progress)
