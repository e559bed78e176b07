"""Tokens of a corpus on disk: prepared once, checked at every opening, never half written."""

import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import tokenizers
from numpy.typing import NDArray

from icl_jax.config import UserError
from icl_jax.data.corpus import Progress
from icl_jax.data.text.documents import Documents, measure_documents
from icl_jax.data.text.tokenizing import (
    check_bpe_size,
    count_ids,
    encode_documents,
    find_bos,
    is_cut,
    load_tokenizer,
    read_tokenizer_file,
    tokenizer_file,
    train_bpe,
)

SCHEMA = 2
"""Goes up whenever the files or the way documents become tokens change; older caches are then prepared anew."""

_HASH_UP_TO_BYTES = 2**30
_STALE_AFTER_S = 86_400
_log = logging.getLogger("icl_jax.data")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenManifest:
    """What was prepared, from what, and the checksums of it."""

    schema: int
    source: str
    tokenizer: str
    python: str
    tokenizers: str
    documents_sha256: str
    tokenizer_sha256: str
    tokens_sha256: str
    counts_sha256: str
    dtype: str
    n_tokens: int
    n_documents: int
    n_bytes: int
    n_ids: int
    bos_id: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStore:
    """An opened cache: ``tokens`` is memory-mapped, ``counts_V`` int64 [n_ids]."""

    folder: Path
    manifest: TokenManifest
    tokens: NDArray[np.uint16] | NDArray[np.uint32]
    counts_V: NDArray[np.int64]
    tokenizer_json: str


def cache_root() -> Path:
    """Folder of all prepared tokens, in the user's cache folder."""
    return Path(platformdirs.user_cache_dir("icl_jax")) / "tokens"


def open_tokens(
    documents: Documents, *, source: str, tokenizer: str, vocab_size: int, progress: Progress | None = None
) -> TokenStore:
    """The tokens of the documents, from the cache or prepared now.

    A cache that does not match its checksums is prepared anew (with a warning in the log). Safe against being killed
    and against other processes that prepare the same. Raises UserError for documents or a tokenizer that cannot be
    used, or if the cache folder cannot be written.
    """
    try:
        return _open_tokens(documents, source, tokenizer, vocab_size, progress)
    except OSError as error:
        where = error.filename or cache_root()
        raise UserError(f"{where}: cannot use the cache of tokens: {error.strerror or error}") from None


def _open_tokens(
    documents: Documents, source: str, tokenizer: str, vocab_size: int, progress: Progress | None
) -> TokenStore:
    setting = _tokenizer_setting(tokenizer, vocab_size)
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    digest, n_bytes = _measure(root, documents, progress)
    if not n_bytes:
        raise UserError(f"data.source = {source!r}: holds no text")
    if documents.is_cut and not is_cut(documents, tokenizer):
        setting += " whole"  # older caches have their tokens in pieces
    folder = root / _key(digest, setting)
    if folder.exists():
        try:
            return _load(folder)
        except (ValueError, OSError) as error:
            _log.warning("%s: damaged (%s); preparing the tokens anew", folder, error)
    _remove_stale(root)
    built = _new(root, "building-")
    built.mkdir()
    try:
        _build(built, documents, digest, n_bytes, source, tokenizer, vocab_size, progress)
        return _publish(built, folder)
    finally:
        shutil.rmtree(built, ignore_errors=True)


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _tokenizer_setting(tokenizer: str, vocab_size: int) -> str:
    """What a prepared corpus depends on besides its documents. Raises UserError if it cannot be used."""
    if tokenizer == "bpe":
        check_bpe_size(vocab_size)
        return f"bpe {vocab_size}"
    path = tokenizer_file(tokenizer)
    if path is not None:
        return _sha256(read_tokenizer_file(tokenizer, path).encode())
    return f"hub {tokenizer}"  # by name, so that a prepared corpus opens without the network


def _key(digest: str, setting: str) -> str:
    return _sha256(json.dumps([SCHEMA, digest, setting]).encode())[:32]


def _measure(root: Path, documents: Documents, progress: Progress | None) -> tuple[str, int]:
    """measure_documents, remembered under the documents' identity so that a warm opening need not read them."""
    memo = root / "measured" / f"{documents.identity}.json"
    try:
        digest, n_bytes = json.loads(memo.read_text(encoding="ascii"))
        return str(digest), int(n_bytes)
    except (OSError, ValueError, TypeError):
        pass  # not measured yet, or damaged
    digest, n_bytes = measure_documents(documents, progress)
    memo.parent.mkdir(exist_ok=True)
    _write_whole(memo, json.dumps([digest, n_bytes]).encode())
    return digest, n_bytes


def _write_whole(path: Path, data: bytes) -> None:
    new = _new(path.parent, "writing-")
    new.write_bytes(data)
    os.replace(new, path)


def _new(folder: Path, prefix: str) -> Path:
    """A path that nobody has. What is made there has the user's umask, which `tempfile` has not."""
    return folder / f"{prefix}{secrets.token_hex(8)}"


def _load(folder: Path) -> TokenStore:
    """Open a cache. Raises ValueError or OSError if a part is missing or does not match the manifest."""
    raw: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    try:
        manifest = TokenManifest(**raw)
        dtype = np.dtype(manifest.dtype)
    except TypeError as error:
        raise ValueError(f"manifest.json: {error}") from None
    if manifest.schema != SCHEMA:
        raise ValueError(f"manifest.json: schema {manifest.schema}, not {SCHEMA}")
    tokenizer_json = (folder / "tokenizer.json").read_bytes()
    if _sha256(tokenizer_json) != manifest.tokenizer_sha256:
        raise ValueError("tokenizer.json does not match its checksum")
    counts_V = np.fromfile(folder / "counts.bin", "<i8")
    if len(counts_V) != manifest.n_ids or _sha256(counts_V.tobytes()) != manifest.counts_sha256:
        raise ValueError("counts.bin does not match its checksum")
    path = folder / "tokens.bin"
    size = path.stat().st_size
    if not manifest.n_tokens or size != manifest.n_tokens * dtype.itemsize:
        raise ValueError(f"tokens.bin holds {size} bytes, not {manifest.n_tokens * dtype.itemsize}")
    tokens = np.memmap(path, dtype, "r")
    # Reading a large file through at every start costs more than it protects from; its size still has to be right.
    if size <= _HASH_UP_TO_BYTES and _sha256(tokens.data) != manifest.tokens_sha256:
        raise ValueError("tokens.bin does not match its checksum")
    return TokenStore(
        folder=folder, manifest=manifest, tokens=tokens, counts_V=counts_V, tokenizer_json=tokenizer_json.decode()
    )


def _build(
    folder: Path,
    documents: Documents,
    digest: str,
    n_bytes: int,
    source: str,
    tokenizer_name: str,
    vocab_size: int,
    progress: Progress | None,
) -> None:
    is_bpe = tokenizer_name == "bpe"
    tokenizer = train_bpe(documents, n_bytes, vocab_size, progress) if is_bpe else load_tokenizer(tokenizer_name)
    bos_id = find_bos(tokenizer, tokenizer_name)
    n_ids = count_ids(tokenizer)
    check_vocab_size(n_ids, tokenizer_name, vocab_size)
    tokenizer_json = tokenizer.to_str().encode()
    dtype = "<u2" if n_ids <= 2**16 else "<u4"
    counts_V = np.zeros(n_ids, "<i8")
    tokens_hash = hashlib.sha256()
    with open(folder / "tokens.bin", "wb") as file:
        for ids in encode_documents(tokenizer, documents, n_bytes, tokenizer_name, progress):
            counts_V += np.bincount(ids, minlength=n_ids)
            data = ids.astype(dtype).tobytes()
            tokens_hash.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    counts_V.tofile(folder / "counts.bin")
    manifest = TokenManifest(
        schema=SCHEMA,
        source=source,
        tokenizer=tokenizer_name,
        python=platform.python_version(),
        tokenizers=tokenizers.__version__,
        documents_sha256=digest,
        tokenizer_sha256=_sha256(tokenizer_json),
        tokens_sha256=tokens_hash.hexdigest(),
        counts_sha256=_sha256(counts_V.tobytes()),
        dtype=dtype,
        n_tokens=int(counts_V.sum()),
        n_documents=int(counts_V[bos_id]),
        n_bytes=n_bytes,
        n_ids=n_ids,
        bos_id=bos_id,
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")


def check_vocab_size(n_ids: int, tokenizer_name: str, vocab_size: int) -> None:
    """Raise UserError if the tokenizer has more ids than the model."""
    if n_ids > vocab_size:
        allowed = f"must be at least {n_ids}, the number of token ids of data.tokenizer = {tokenizer_name!r}"
        raise UserError(f"model.vocab_size = {vocab_size}: {allowed}")


def _publish(built: Path, folder: Path) -> TokenStore:
    """Move a finished cache to its place; if another process was first, take that one."""
    for _ in range(3):
        try:
            os.rename(built, folder)
        except OSError:
            if not folder.exists():
                raise
            try:
                return _load(folder)
            except (ValueError, OSError):
                aside = _new(folder.parent, "building-")
                aside.mkdir()
                try:
                    os.rename(folder, aside / "damaged")
                except FileNotFoundError:
                    pass  # another process was quicker in putting it aside
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
        else:
            return _load(folder)
    raise UserError(f"{folder}: cannot be replaced; remove it")


def _remove_stale(root: Path) -> None:
    """Remove what killed processes left behind."""
    for left in root.glob("building-*"):
        try:
            is_stale = time.time() - left.stat().st_mtime > _STALE_AFTER_S
        except OSError:
            continue
        if is_stale:
            shutil.rmtree(left, ignore_errors=True)
