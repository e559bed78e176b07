"""``icl-jax data``: prepare a corpus, or look at its rows."""

from rich.console import Console

from icl_jax.config import Config, UserError
from icl_jax.data import open_shown, row_ids
from icl_jax.data.corpora.text import TextCorpus
from icl_jax.data.text.tokenizing import decode_text, parse_tokenizer
from icl_jax.display import say
from icl_jax.telling import printable


def data_prepare(config: Config, console: Console) -> None:
    """Prepare the corpus of ``config`` where the cache does not hold it, and say what it is. Raises UserError."""
    corpus = open_shown(config, console)
    summary = {"source": config.data.source}
    if isinstance(corpus, TextCorpus):
        manifest = corpus.store.manifest
        # A document's BOS stands for no text.
        bytes_per_token = manifest.n_bytes / max(manifest.n_tokens - manifest.n_documents, 1)
        summary |= {
            "documents": f"{manifest.n_documents:,}",
            "tokens": f"{manifest.n_tokens:,}",
            "bytes/token": f"{bytes_per_token:.2f}",
        }
    n_rows = "no end, made on demand" if corpus.n_rows is None else f"{corpus.n_rows:,}"
    summary |= {
        "token ids": f"{corpus.vocab_size:,}",
        "training rows": f"{n_rows} (of {corpus.n_ctx:,} tokens)",
        "held-out rows": f"{corpus.n_held_out:,}",
    }
    if isinstance(corpus, TextCorpus):
        summary |= {"of them again": f"{len(corpus.held_out_again):,} are also in training"}
        summary |= {"folder": str(corpus.store.folder), "tokens sha256": corpus.store.manifest.tokens_sha256}
    summary["fingerprint"] = corpus.fingerprint
    for name, value in summary.items():
        say(console, f"{name:<14} {printable(value)}")


def data_show(config: Config, console: Console, n_rows: int = 3, held_out: bool = False) -> None:
    """Print the first rows that training sees, or the first held-out ones, as text. Raises UserError if n_rows < 1."""
    if n_rows < 1:
        raise UserError(f"n_rows = {n_rows}: must be 1 or more")
    corpus = open_shown(config, console)
    if isinstance(corpus, TextCorpus) and (again := corpus.held_out_again):
        some = ", ".join(map(str, again[:10])) + (", ..." if len(again) > 10 else "")
        say(console, f"{len(again):,} of {corpus.n_held_out:,} held-out rows are also in training: {some}")
    if held_out:
        rows = corpus.held_out(min(n_rows, corpus.n_held_out))
        titles = [f"held-out row {i}" for i in range(len(rows))]
    else:
        n_rows = n_rows if corpus.n_rows is None else min(n_rows, corpus.n_rows)
        ids = row_ids(config.data.seed, 0, n_rows, corpus.n_rows)
        rows = corpus.rows(ids)
        titles = [f"training row {i}" for i in ids]
    tokenizer = None if corpus.tokenizer_json is None else parse_tokenizer(corpus.tokenizer_json)
    for title, row in zip(titles, rows, strict=True):
        say(console, f"--- {title} ---")
        say(console, " ".join(corpus.decode(row)) if tokenizer is None else decode_text(tokenizer, row))
