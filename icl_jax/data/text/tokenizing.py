"""Tokenizers: training one on the corpus, loading one, and turning documents into ids."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from etils import epath
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from icl_jax.config import UserError
from icl_jax.data.corpus import BOS, Progress
from icl_jax.data.streams import Stream, random_stream
from icl_jax.data.text.documents import Documents
from icl_jax.telling import printable

_BOS_LIKE = (BOS, "<s>", "<|endoftext|>", "[BOS]", "<bos>", "<|begin_of_text|>")
_BYTE_ALPHABET = 256
_SAMPLE_BYTES = 20_000_000

# Documents are encoded in pieces, which bounds the memory of one call and lets threads share a long document.
_PIECE_CHARS = 2**16
_PIECES_PER_CALL = 64


def split_pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most 65,536 characters, after a line or before a space where there is one."""
    start = 0
    while len(text) - start > _PIECE_CHARS:
        limit = start + _PIECE_CHARS
        cut = text.rfind("\n", start, limit) + 1 or text.rfind(" ", start + 1, limit)
        cut = cut if cut > start else limit
        yield text[start:cut]
        start = cut
    yield text[start:]


def _sample(documents: Documents, n_bytes: int, progress: Progress | None) -> Iterator[str]:
    """Pieces of about 20 MB in all, or every piece of a smaller corpus; the same at each call."""
    share = _SAMPLE_BYTES / n_bytes
    coins = random_stream(0, Stream.TOKENIZER_SAMPLE)
    done = 0
    for text in documents:
        for piece in split_pieces(text):
            done += len(piece.encode())
            if share >= 1 or coins.random() < share:
                yield piece
            if progress is not None:
                progress(done, n_bytes, "training the tokenizer")


def check_bpe_size(vocab_size: int) -> None:
    """Raise UserError if the 256 bytes, BOS and one merge do not fit in the vocabulary."""
    if vocab_size < _BYTE_ALPHABET + 2:
        allowed = f"must be {_BYTE_ALPHABET + 2} or more for a byte-level BPE (data.tokenizer = 'bpe')"
        raise UserError(f"model.vocab_size = {vocab_size}: {allowed}")


def train_bpe(documents: Documents, n_bytes: int, vocab_size: int, progress: Progress | None = None) -> Tokenizer:
    """Train a byte-level BPE of at most ``vocab_size`` tokens, BOS being id 0, on about 20 MB of the documents.

    ``n_bytes`` is the size of all documents. The same documents give the same tokenizer. Raises UserError as
    check_bpe_size does.
    """
    check_bpe_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(documents, n_bytes, progress), trainer)
    return tokenizer


def read_tokenizer_file(name: str) -> str:
    """Text of a tokenizer file. Raises UserError if it cannot be read."""
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"data.tokenizer = {name!r}: cannot read the file: {reason}") from None


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer from ``PATH.json`` or, for any other name, the hub. Raises UserError if it cannot be had."""
    if name.endswith(".json"):
        try:
            return parse_tokenizer(read_tokenizer_file(name))
        except ValueError as error:
            raise UserError(f"data.tokenizer = {name!r}: not a tokenizer of the tokenizers library: {error}") from None
    try:
        tokenizer = Tokenizer.from_pretrained(name)
    except Exception as error:  # the library raises bare Exceptions, and those of its HTTP client
        reason = " ".join(str(error).split())[:200]
        allowed = "must be 'bpe', a PATH.json, or a name on the Hugging Face hub that can be fetched"
        raise UserError(f"data.tokenizer = {name!r}: {allowed} ({reason})") from None
    return _without_extras(tokenizer)


def parse_tokenizer(text: str) -> Tokenizer:
    """A tokenizer from its JSON. Raises ValueError, one line, if it is none."""
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(" ".join(str(error).split())[:200]) from None
    return _without_extras(tokenizer)


def run_tokenizer(text: str | None, path: epath.Path) -> Tokenizer | None:
    """A run's tokenizer.json, read from `path`; None where its corpus has none. Raises UserError if it is damaged."""
    try:
        return None if text is None else parse_tokenizer(text)
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer of the tokenizers library: {error}") from None


def _without_extras(tokenizer: Tokenizer) -> Tokenizer:
    # Hub tokenizers may cut or pad what they encode.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def count_ids(tokenizer: Tokenizer) -> int:
    """Largest id and one."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def find_bos(tokenizer: Tokenizer, name: str) -> int:
    """Id of the token that starts a document. Raises UserError if the tokenizer has none."""
    for token in _BOS_LIKE:
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    allowed = "must have a token that can start a document, one of " + ", ".join(_BOS_LIKE)
    raise UserError(f"data.tokenizer = {name!r}: {allowed}")


def encode_documents(
    tokenizer: Tokenizer, documents: Documents, n_bytes: int, name: str, progress: Progress | None = None
) -> Iterator[NDArray[np.int64]]:
    """Ids of all documents in a row, BOS before each, in arrays of some pieces each. ``n_bytes``: of all documents.

    Text that looks like a special token is encoded as the text that it is. Raises UserError if the tokenizer would
    write BOS for a text.
    """
    bos_id = find_bos(tokenizer, name)
    tokenizer.encode_special_tokens = True
    done = 0
    pieces = _marked_pieces(documents)
    while group := list(islice(pieces, _PIECES_PER_CALL)):
        encodings = tokenizer.encode_batch_fast([piece for _, piece in group], add_special_tokens=False)
        ids: list[int] = []
        for (starts_document, _), encoding in zip(group, encodings, strict=True):
            if bos_id in encoding.ids:
                raise UserError(f"data.tokenizer = {name!r}: encodes a plain text of the corpus as its BOS token")
            ids += [bos_id, *encoding.ids] if starts_document else encoding.ids
        yield np.array(ids, np.int64)
        done += sum(len(piece.encode()) for _, piece in group)
        if progress is not None:
            progress(done, n_bytes, "encoding")


def _marked_pieces(documents: Iterable[str]) -> Iterator[tuple[bool, str]]:
    for text in documents:
        for i, piece in enumerate(split_pieces(text)):
            yield i == 0, piece


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def decode_tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """One printable string per id; bytes that are no whole character show in hexadecimal, unknown ids as <?ID>."""
    is_byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    shown: dict[int, str] = {}
    out = []
    for i in ids:
        i = int(i)
        if i not in shown:
            token = tokenizer.id_to_token(i)
            if token is None:
                text = f"<?{i}>"
            elif i in special:
                text = token
            elif is_byte_level and all(c in _byte_of_character() for c in token):
                text = bytes(_byte_of_character()[c] for c in token).decode("utf-8", "backslashreplace")
            else:
                text = tokenizer.decode([i], skip_special_tokens=False)
            shown[i] = printable(text)
        out.append(shown[i])
    return out


def decode_text(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of a stretch of ids, safe to print: its lines end in line ends, all else that is special is escaped."""
    text = tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)
    return "\n".join(printable(line) for line in text.split("\n"))
