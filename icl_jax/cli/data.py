"""``icl-jax data``: prepare a corpus, or look at its rows."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from icl_jax import data
from icl_jax.config import Config, UserError
from icl_jax.data import Corpus, row_ids
from icl_jax.data.corpora.text import TextCorpus
from icl_jax.data.text.tokenizing import decode_text, parse_tokenizer, printable

_PLAIN_EVERY_S = 5.0


class PreparationProgress:
    """Shows how far the preparation of a corpus is: a bar on a terminal, else a line every five seconds.

    Call it with (bytes done, bytes in all, label). Shows nothing where nothing is prepared.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._label = ""
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done_bytes: int, total_bytes: int, label: str) -> None:
        """Show a state; called by open_corpus."""
        if self._console.is_terminal:
            self._show_bar(done_bytes, total_bytes, label)
        else:
            self._show_line(done_bytes, total_bytes, label)

    def _show_bar(self, done_bytes: int, total_bytes: int, label: str) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
        if self._task is None or label != self._label:
            self._task = self._bar.add_task(label, total=total_bytes)
            self._label = label
        self._bar.update(self._task, completed=done_bytes)

    def _show_line(self, done_bytes: int, total_bytes: int, label: str) -> None:
        now_s = time.monotonic()
        if label == self._label and now_s < self._next_line_s:
            return
        percent = 100 * done_bytes // max(total_bytes, 1)
        _print(self._console, f"{label}: {percent} % of {total_bytes / 1e6:.1f} MB")
        self._label = label
        self._next_line_s = now_s + _PLAIN_EVERY_S


def _print(console: Console, text: str) -> None:
    # Corpus text, paths and names are to be seen as they are: no markup such as [red], no emoji codes, no colours.
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def open_corpus(config: Config, console: Console) -> Corpus:
    """Open the corpus of a config, showing how far its preparation is. Raises UserError."""
    with PreparationProgress(console) as progress:
        return data.open_corpus(config, progress=progress)


def data_prepare(config: Config, console: Console) -> None:
    """Prepare the corpus of ``config`` where the cache does not hold it, and say what it is. Raises UserError."""
    corpus = open_corpus(config, console)
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
        summary |= {"folder": str(corpus.store.folder), "tokens sha256": corpus.store.manifest.tokens_sha256}
    summary["fingerprint"] = corpus.fingerprint
    for name, value in summary.items():
        _print(console, f"{name:<14} {printable(value)}")


def data_show(config: Config, console: Console, n_rows: int = 3, held_out: bool = False) -> None:
    """Print the first rows that training sees, or the first held-out ones, as text. Raises UserError if n_rows < 1."""
    if n_rows < 1:
        raise UserError(f"n_rows = {n_rows}: must be 1 or more")
    corpus = open_corpus(config, console)
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
        _print(console, f"--- {title} ---")
        _print(console, " ".join(corpus.decode(row)) if tokenizer is None else decode_text(tokenizer, row))
