"""Tokenizers: training one on the corpus, loading one, and turning documents into ids."""

import urllib.error
import urllib.request
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from etils import epath
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from icl_jax.config import UserError
from icl_jax.config.what_it_is import what_it_is
from icl_jax.data.corpus import BOS, Progress
from icl_jax.data.streams import Stream, random_stream
from icl_jax.data.text.documents import Documents
from icl_jax.data.text.unsayable import LostCharacters, unknown_word
from icl_jax.telling import one_line, printable

_BOS_LIKE = (BOS, "<s>", "<|endoftext|>", "[BOS]", "<bos>", "<|begin_of_text|>")
_BYTE_ALPHABET = 256
_SAMPLE_BYTES = 20_000_000
_HUB_PATIENCE_S = 5

# Characters that are encoded at a time, a hundred bytes of memory each; a tokenizer is trained on pieces of them.
_PIECE_CHARS = 2**16
_PIECES_PER_CALL = 64
# A longer document is encoded in windows that overlap, and joined where so many tokens on both sides agree.
_WINDOW_CHARS = 2**22
_OVERLAP_CHARS = 2**14
_AGREEING = 32


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


def tokenizer_file(name: str) -> Path | None:
    """The file that a tokenizer's name means: what ends in .json or is there, in a folder its tokenizer.json.

    None: it is a name on the hub. Raises UserError for a folder without one.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise UserError(f"data.tokenizer = {name!r}: is a folder without a tokenizer.json")
        return path / "tokenizer.json"
    return path if name.endswith(".json") or what_it_is(path) else None


def read_tokenizer_file(name: str, path: Path) -> str:
    """Text of a tokenizer file. Raises UserError if it cannot be read."""
    if what_it_is(path) not in ("file", ""):
        raise UserError(f"data.tokenizer = {name!r}: is no regular file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"data.tokenizer = {name!r}: cannot read the file: {reason}") from None


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer from a file, a folder or, for a name that is neither, the hub. Raises UserError."""
    path = tokenizer_file(name)
    if path is not None:
        try:
            return parse_tokenizer(read_tokenizer_file(name, path))
        except ValueError as error:
            raise UserError(f"data.tokenizer = {name!r}: not a tokenizer of the tokenizers library: {error}") from None
    why_not = hub_unreachable()
    try:
        tokenizer = Tokenizer.from_file(_in_hub_cache(name, why_not)) if why_not else Tokenizer.from_pretrained(name)
    except UserError:
        raise
    except Exception as error:  # the library raises bare Exceptions, and those of its HTTP client
        reason = one_line(str(error).partition(". ")[0])
        allowed = "must be 'bpe', a PATH.json, or a name on the Hugging Face hub that can be fetched"
        raise UserError(f"data.tokenizer = {name!r}: {allowed} ({reason})") from None
    return _without_extras(tokenizer)


def hub_unreachable() -> str | None:
    """Why the Hugging Face hub does not answer, or None: its own client tries again for half a minute."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=_HUB_PATIENCE_S).close()
    except urllib.error.HTTPError:
        return None  # an answer
    except (OSError, ValueError) as error:
        return f"{ENDPOINT} cannot be reached: {one_line(str(getattr(error, 'reason', error)))}"
    return None


def _in_hub_cache(name: str, why_not: str) -> str:
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(name, "tokenizer.json")
    except ValueError:  # no name of a repository
        found = None
    if not isinstance(found, str):
        what = "is no file or folder here, and no tokenizer that was fetched from the Hugging Face hub before"
        raise UserError(f"data.tokenizer = {name!r}: {what} ({why_not})")
    return found


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
    """Id of the token that starts a document, a special one before one that is only called so.

    Raises UserError if the tokenizer has none.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    for token in sorted(_BOS_LIKE, key=lambda token: token not in special):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    allowed = "must have a token that can start a document, one of " + ", ".join(_BOS_LIKE)
    raise UserError(f"data.tokenizer = {name!r}: {allowed}")


def encode_documents(
    tokenizer: Tokenizer, documents: Documents, n_bytes: int, name: str, progress: Progress | None = None,
    bos_id: int | None = None,
) -> Iterator[NDArray[np.int64]]:  # fmt: skip
    """Ids of all documents in a row, BOS before each, in arrays of some documents each. ``n_bytes``: of all documents.

    Text that looks like a special token is encoded as the text that it is. ``bos_id``: None takes what ``find_bos``
    finds. Raises UserError if the tokenizer would write BOS for a text, or has no token for some of it.
    """
    bos_id = find_bos(tokenizer, name) if bos_id is None else bos_id
    tokenizer.encode_special_tokens = True
    lost = LostCharacters(tokenizer)
    done = 0
    for group in _groups(_marked_pieces(documents, name)):
        texts = [piece for _, piece in group]
        ids: list[int] = []
        for (starts_document, _), found in zip(group, _encode_all(tokenizer, texts, name), strict=True):
            if bos_id in found:
                raise UserError(f"data.tokenizer = {name!r}: encodes a plain text of the corpus as its BOS token")
            ids += [bos_id, *found] if starts_document else found
        yield np.array(ids, np.int64)
        for text in texts:
            lost.add(text)
        done += sum(len(text.encode()) for text in texts)
        if progress is not None:
            progress(done, n_bytes, "encoding")
    if lost.counts:
        raise UserError(f"data.tokenizer = {name!r}: has no token for {lost} of the corpus, and would leave them out")


def _marked_pieces(documents: Documents, name: str) -> Iterator[tuple[bool, str]]:
    for text in documents:
        for i, piece in enumerate(split_pieces(text) if is_cut(documents, name) else (text,)):
            yield i == 0, piece


def is_cut(documents: Documents, name: str) -> bool:
    """Whether a long document is encoded in pieces: others' tokenizers may write something else at a cut."""
    return documents.is_cut and name == "bpe"


def _groups(pieces: Iterator[tuple[bool, str]]) -> Iterator[list[tuple[bool, str]]]:
    """Pieces of enough characters for one call."""
    group: list[tuple[bool, str]] = []
    n_chars = 0
    for piece in pieces:
        group.append(piece)
        n_chars += len(piece[1])
        if n_chars >= _PIECE_CHARS * _PIECES_PER_CALL:
            yield group
            group, n_chars = [], 0
    if group:
        yield group


def _encode_all(tokenizer: Tokenizer, texts: list[str], name: str) -> list[list[int]]:
    try:
        short = [text for text in texts if len(text) <= _WINDOW_CHARS]
        encodings = iter(tokenizer.encode_batch_fast(short, add_special_tokens=False))
        return [next(encodings).ids if len(text) <= _WINDOW_CHARS else encode_long(tokenizer, text) for text in texts]
    except Exception as error:  # the library raises bare Exceptions, here for an unknown word and no token for such
        words = (unknown_word(tokenizer, text) for text in texts)
        word = next((word for word in words if word is not None), None)
        what = "cannot encode the corpus" if word is None else f"has no token for {word[:40]!r} of the corpus"
        raise UserError(f"data.tokenizer = {name!r}: {what} ({one_line(str(error))})") from None


def encode_long(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text that is too long to encode at once: the same."""
    out: list[int] = []
    end = _before_blank(text, _WINDOW_CHARS)
    ids, ends = _window(tokenizer, text, 0, end)
    while end < len(text):
        start = _before_blank(text, end - _OVERLAP_CHARS)
        middle, end = (start + end) // 2, _before_blank(text, start + _WINDOW_CHARS)
        next_ids, next_ends = _window(tokenizer, text, start, end)
        meeting = _meeting((ids, ends), (next_ids, next_ends), middle)
        if meeting is None:  # tokens that depend on text so far away
            return list(tokenizer.encode(text, add_special_tokens=False).ids)
        here, there = meeting
        out += ids[:here]
        ids, ends = next_ids[there:], next_ends[there:]
    return out + ids


def _before_blank(text: str, place: int) -> int:
    """The place, or that of a blank just before it: a tokenizer may know no part of a word."""
    blank = max(
        text.rfind(" ", place - _OVERLAP_CHARS // 4, place), text.rfind("\n", place - _OVERLAP_CHARS // 4, place)
    )
    return len(text) if place >= len(text) else place if blank == -1 else blank


def _window(tokenizer: Tokenizer, text: str, start: int, end: int) -> tuple[list[int], list[int]]:
    """Ids of a part of a text, and where in the text each token ends."""
    encoding = tokenizer.encode(text[start:end], add_special_tokens=False)
    return encoding.ids, [start + stop for _, stop in encoding.offsets]


def _meeting(a: tuple[list[int], list[int]], b: tuple[list[int], list[int]], middle: int) -> tuple[int, int] | None:
    """How many tokens of `a` to take, and from which of `b` on: where they agree, as near to `middle` as can be."""
    (a_ids, a_ends), (b_ids, b_ends) = a, b
    places: dict[int, list[int]] = {}
    for j, stop in enumerate(b_ends):
        places.setdefault(stop, []).append(j + 1)
    first = bisect_left(a_ends, b_ends[0]) if b_ends else len(a_ends)
    for i in sorted(range(first + _AGREEING, len(a_ids) - _AGREEING + 1), key=lambda i: abs(a_ends[i - 1] - middle)):
        around = slice(i - _AGREEING, i + _AGREEING)
        for j in places.get(a_ends[i - 1], ()):
            if j < _AGREEING:
                continue
            other = slice(j - _AGREEING, j + _AGREEING)
            if a_ids[around] == b_ids[other] and a_ends[around] == b_ends[other]:
                return i, j
    return None


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
