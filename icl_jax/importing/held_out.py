"""The tokenizer of a checkpoint, and the rows of text that its models are measured on."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from icl_jax.config import DataConfig, ModelConfig, UserError
from icl_jax.config.what_it_is import check_readable
from icl_jax.data.corpora.manual import ManualDocuments
from icl_jax.data.probe_tokens import eligible_tokens
from icl_jax.data.text.documents import Documents, measure_documents, python_documents, text_documents
from icl_jax.data.text.tokenizing import count_ids, encode_documents, find_bos, parse_tokenizer
from icl_jax.importing.checkpoint import Checkpoint
from icl_jax.rundir import HeldOut, RunDir
from icl_jax.rundir.held_out import n_rows_kept

N_ROWS = 512
_MANY_ROWS = 16 * N_ROWS


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What an imported run is measured on, and what it keeps of where that is from."""

    held_out: HeldOut
    data: DataConfig
    corpus_sha256: str
    tokenizer_json: str | None
    """None where rows are token ids that no text stands behind."""
    text: str
    """See `text_of`."""

    @property
    def bos(self) -> tuple[int, str | None]:
        """Id and token, where there is a tokenizer."""
        id_ = self.held_out.bos_id
        return id_, None if self.tokenizer_json is None else parse_tokenizer(self.tokenizer_json).id_to_token(id_)


def run_of(text: str) -> RunDir | None:
    """The run directory that `--text` names, if it names one."""
    return RunDir.open(text) if text not in ("", "manual", "python") and RunDir.is_run(text) else None


def text_of(text: str) -> str:
    """What environment.json calls the text that `--text` names: manual, python, text:PATH, or run:ID of a run."""
    return open_documents(text)[1] if (run := run_of(text)) is None else f"run:{run.run_id}"


def open_rows(text: str, checkpoint: Checkpoint, model: ModelConfig, tokenizer: str = "") -> Rows:
    """Rows of the text that `--text` names, by the tokenizer of the checkpoint or one that the user names.

    Of a run directory they are its own rows, with what it knows of them. Raises UserError where the text, the tokenizer
    and the model do not go together.
    """
    if (run := run_of(text)) is not None:
        return _rows_of_run(run, checkpoint, model, tokenizer)
    tokenizer_json = find_tokenizer(checkpoint, tokenizer)
    bos_id = bos_of(checkpoint, parse_tokenizer(tokenizer_json), "tokenizer.json")
    documents, source = open_documents(text)
    held_out = take_rows(documents, source, tokenizer_json, bos_id, model)
    return Rows(
        held_out=held_out, data=DataConfig(source=source, tokenizer="tokenizer.json", held_out_rows=len(held_out.rows)),
        corpus_sha256=documents_sha256(documents), tokenizer_json=tokenizer_json, text=source,
    )  # fmt: skip


def _rows_of_run(run: RunDir, checkpoint: Checkpoint, model: ModelConfig, tokenizer: str) -> Rows:
    held_out, its_own = run.load_held_out(), run.read_tokenizer()
    found = _tokenizer_of(checkpoint, tokenizer)
    if found is not None and (its_own is None or _ids(found) != _ids(its_own)):
        has = "no tokenizer" if its_own is None else "another tokenizer"
        raise UserError(f"--text = {str(run.path)!r}: has {has} than {checkpoint.path}: its rows would be other tokens")
    if held_out.rows.max() >= model.vocab_size:
        allowed = f"must be at least {held_out.rows.max() + 1}, the ids of the rows of {run.path}"
        raise UserError(f"model.vocab_size = {model.vocab_size}: {allowed}")
    return Rows(
        held_out=held_out, data=run.config.data, corpus_sha256=run.corpus_sha256, tokenizer_json=its_own,
        text=f"run:{run.run_id}",
    )  # fmt: skip


def _ids(tokenizer_json: str) -> dict[str, int]:
    return parse_tokenizer(tokenizer_json).get_vocab()


def find_tokenizer(checkpoint: Checkpoint, file: str = "") -> str:
    """The tokenizer as JSON of the `tokenizers` library. `file`: one that the user names.

    Else what the checkpoint holds, or tokenizer.json in its folder or the one above, or vocab.json and merges.txt (a
    byte-level BPE). Raises UserError where there is none.
    """
    if (found := _tokenizer_of(checkpoint, file)) is not None:
        return found
    named = checkpoint.config.get("tokenizer_name")
    known = f" (its config.json names {named})" if isinstance(named, str) else ""
    raise UserError(f"{_folder(checkpoint)}: has no tokenizer.json{known}: --tokenizer PATH.json names the model's own")


def _folder(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _tokenizer_of(checkpoint: Checkpoint, file: str) -> str | None:
    folder = _folder(checkpoint)
    if file:
        return _read(Path(file).expanduser())
    if checkpoint.tokenizer_json is not None:
        return checkpoint.tokenizer_json
    for path in (folder / "tokenizer.json", folder.parent / "tokenizer.json"):
        if path.is_file():
            return _read(path)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if vocab.is_file() and merges.is_file():
        return _byte_level_bpe(vocab, merges)
    return None


def _read(path: Path) -> str:
    check_readable(path, f"{path}: cannot be read")
    try:
        text = path.read_text(encoding="utf-8")
        parse_tokenizer(text)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer of the tokenizers library: {error}") from None
    return text


def _byte_level_bpe(vocab: Path, merges: Path) -> str:
    """GPT-2's, from the two files that it was published in."""
    try:
        tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"{vocab}: with merges.txt no byte-level BPE: {error}") from None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token in json.loads(vocab.read_text(encoding="utf-8")) if token.startswith("<|")]
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str()


def bos_of(checkpoint: Checkpoint, tokenizer: Tokenizer, name: str) -> int:
    """What a row begins with: bos_token_id of config.json, or what the tokenizer has for it. Raises UserError."""
    found = checkpoint.config.get("bos_token_id")
    if isinstance(found, int) and not isinstance(found, bool) and tokenizer.id_to_token(found) is not None:
        return found
    return find_bos(tokenizer, name)


def open_documents(text: str) -> tuple[Documents, str]:
    """The documents that `--text` names, and what `data.source` calls them: manual, python, files or a glob."""
    if text == "manual":
        return ManualDocuments(), text
    if text == "python":
        return python_documents(), text
    pattern = text.removeprefix("text:")
    return text_documents(pattern), f"text:{pattern}"


def take_rows(
    documents: Documents, source: str, tokenizer_json: str, bos_id: int, model: ModelConfig, n_rows: int = N_ROWS
) -> HeldOut:
    """Up to n_rows rows of BOS and n_ctx tokens, spread evenly over the text, and tokens for random sequences.

    Of a long text the first part is read, sixteen times what is taken. Raises UserError where the text is shorter than
    a row, or the tokenizer has ids that the model lacks.
    """
    tokenizer = parse_tokenizer(tokenizer_json)
    n_ctx = model.n_ctx
    ids = _some(encode_documents(tokenizer, documents, documents.n_bytes, "tokenizer.json", None, bos_id), n_ctx)
    if len(ids) and ids.max() >= model.vocab_size:
        allowed = f"must be at least {ids.max() + 1}, the ids that the tokenizer gives"
        raise UserError(f"model.vocab_size = {model.vocab_size}: {allowed}")
    n_all = (len(ids) - 1) // n_ctx
    if n_all < 1:
        allowed = f"must hold {n_ctx + 1} tokens or more, a row; --n-ctx makes rows shorter"
        raise UserError(f"--text = {source!r}: holds {len(ids)} tokens: {allowed}")
    rows = np.empty((n_all, n_ctx + 1), np.int32)
    rows[:, 0], rows[:, 1:] = bos_id, ids[1 : 1 + n_all * n_ctx].reshape(n_all, n_ctx)
    n_taken = n_rows_kept(min(n_all, n_rows), n_ctx)
    taken = np.unique(np.linspace(0, n_all - 1, n_taken).round().astype(int))
    counts_V = np.bincount(ids, minlength=max(count_ids(tokenizer), model.vocab_size))
    return HeldOut(rows[taken], eligible_tokens(counts_V, bos_id), bos_id)


def _some(parts: Iterator[np.ndarray], n_ctx: int) -> np.ndarray:
    found: list[np.ndarray] = []
    for part in parts:
        found.append(part)
        if sum(map(len, found)) > _MANY_ROWS * n_ctx:
            break
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def documents_sha256(documents: Documents) -> str:
    """Over the texts."""
    return measure_documents(documents)[0]
