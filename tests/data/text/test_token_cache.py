"""The cache of tokens: warm, damaged, killed, shared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from icl_jax.config import UserError
from icl_jax.data.text import documents as documents_module
from icl_jax.data.text import token_cache
from icl_jax.data.text.documents import text_documents
from icl_jax.data.text.token_cache import TokenStore, open_tokens
from tests.waiting import LAST_RESORT_S


@pytest.fixture
def open_stories(cache: Path, stories: Path) -> Callable[..., TokenStore]:
    def open_(tokenizer: str = "bpe", vocab_size: int = 300) -> TokenStore:
        documents = text_documents(str(stories))
        return open_tokens(documents, source="text:stories", tokenizer=tokenizer, vocab_size=vocab_size)

    return open_


def test_the_manifest_says_what_there_is(open_stories: Callable[..., TokenStore], cache: Path) -> None:
    store = open_stories()
    manifest = store.manifest
    assert store.folder.parent == cache
    assert (manifest.n_documents, manifest.bos_id, manifest.n_ids, manifest.dtype) == (22, 0, 300, "<u2")
    assert manifest.n_tokens == len(store.tokens) == store.counts_V.sum()
    np.testing.assert_array_equal(store.counts_V, np.bincount(store.tokens, minlength=300))
    tokenizer = Tokenizer.from_str(store.tokenizer_json)
    texts = [tokenizer.decode(part) for part in np.split(store.tokens, np.flatnonzero(store.tokens == 0))[1:]]
    assert sum(len(text.encode()) for text in texts) == manifest.n_bytes


def test_a_warm_cache_reads_no_document(
    open_stories: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = open_stories()
    monkeypatch.setattr(documents_module.FileDocuments, "__iter__", lambda self: pytest.fail("read a document"))
    warm = open_stories()
    assert warm.manifest == cold.manifest
    np.testing.assert_array_equal(warm.tokens, cold.tokens)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["tokens.bin", "tokenizer.json", "counts.bin", "manifest.json"])
def test_damage_is_seen_and_mended(
    open_stories: Callable[..., TokenStore],
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    store = open_stories()
    manifest, tokens = store.manifest, np.array(store.tokens)
    damage(store.folder / name)
    mended = open_stories()
    if not (name == "manifest.json" and damage is flip):  # a flipped digit may leave the manifest as good as it was
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "damaged" in caplog.text
        assert caplog.text.count("\n") == 1
        assert mended.manifest == manifest
    np.testing.assert_array_equal(mended.tokens, tokens)
    assert not list(store.folder.parent.glob("building-*"))
    caplog.clear()
    open_stories()
    assert not caplog.records


def test_a_large_file_has_its_size_checked(
    open_stories: Callable[..., TokenStore], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "_HASH_UP_TO_BYTES", 0)
    path = open_stories().folder / "tokens.bin"
    size = path.stat().st_size
    open_stories()
    assert not caplog.records
    truncate(path)
    open_stories()
    assert f"tokens.bin holds {size - 2} bytes, not {size}" in caplog.text
    assert path.stat().st_size == size


@pytest.mark.parametrize("change", [{"schema": 0}, {"unknown": 1}, {"dtype": "nonsense"}, {"n_tokens": 0}])
def test_another_schema_is_prepared_anew(
    open_stories: Callable[..., TokenStore], caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    path = open_stories().folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert open_stories().manifest.schema == token_cache.SCHEMA
    assert "damaged" in caplog.text


def test_a_damaged_measure_is_taken_anew(open_stories: Callable[..., TokenStore], cache: Path) -> None:
    folder = open_stories().folder
    (memo,) = (cache / "measured").iterdir()
    for content in ("", "[1]", "{}", "\xff"):
        memo.write_text(content, encoding="latin-1")
        assert open_stories().folder == folder


def test_settings_have_caches_of_their_own(
    open_stories: Callable[..., TokenStore], stories: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    path.write_text(open_stories().tokenizer_json)
    folders = {open_stories(vocab_size=size).folder for size in (300, 301)} | {open_stories(str(path)).folder}
    assert len(folders) == 3
    path.write_text(open_stories(vocab_size=301).tokenizer_json)
    assert open_stories(str(path), 301).folder not in folders
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "a.txt").write_text("another text")
    other = open_tokens(text_documents(str(changed)), source="text:x", tokenizer="bpe", vocab_size=300)
    assert other.folder not in folders


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_preparation_leaves_nothing(
    open_stories: Callable[..., TokenStore],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
) -> None:
    def interrupted(*_: object) -> None:
        assert list(cache.glob("building-*/tokens.bin"))
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "encode_documents", interrupted)
        with pytest.raises(stop):
            open_stories()
    assert [path.name for path in cache.iterdir()] == ["measured"]
    assert open_stories().manifest.n_documents == 22


def test_what_killed_processes_left_goes_after_a_day(open_stories: Callable[..., TokenStore], cache: Path) -> None:
    for name, age_s in (("building-old", 90_000), ("building-new", 10)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    open_stories()
    assert [path.name for path in cache.glob("building-*")] == ["building-new"]


def test_processes_that_prepare_at_once_end_with_one_cache(cache: Path, stories: Path, checkout: Path) -> None:
    program = (
        "import sys\nfrom icl_jax.data.text.documents import text_documents\n"
        "from icl_jax.data.text.token_cache import open_tokens\n"
        "store = open_tokens(text_documents(sys.argv[1]), source='x', tokenizer='bpe', vocab_size=400)\n"
        "print(store.folder, store.manifest.tokens_sha256)"
    )
    command = [sys.executable, "-c", program, str(stories)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=checkout) for _ in range(3)]
    said = [process.communicate(timeout=LAST_RESORT_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(said)) == 1
    assert len(list(cache.glob("*/manifest.json"))) == 1
    assert not list(cache.glob("building-*"))


def test_the_slower_of_two_takes_the_cache_of_the_faster(
    open_stories: Callable[..., TokenStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = token_cache._publish
    inner: list[TokenStore] = []
    inodes: list[int] = []

    def late(built: Path, folder: Path) -> TokenStore:
        monkeypatch.setattr(token_cache, "_publish", publish)
        inner.append(open_stories())
        inodes.append((inner[0].folder / "tokens.bin").stat().st_ino)
        return publish(built, folder)

    monkeypatch.setattr(token_cache, "_publish", late)
    outer = open_stories()
    assert outer.folder == inner[0].folder
    # The other process may have the file mapped already, so it is the one that stays.
    assert [(outer.folder / "tokens.bin").stat().st_ino] == inodes
    assert not list(outer.folder.parent.glob("building-*"))


def test_many_ids_take_four_bytes(cache: Path, stories: Path, tmp_path: Path) -> None:
    vocab = {"<s>": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, 70_000)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "words.json"))
    (tmp_path / "a.txt").write_text("w69999 w2 w65536 nothing")
    documents = text_documents(str(tmp_path / "a.txt"))
    name = str(tmp_path / "words.json")
    store = open_tokens(documents, source="x", tokenizer=name, vocab_size=70_000)
    assert store.tokens.dtype == np.uint32
    assert store.tokens.tolist() == [0, 69_999, 2, 65_536, 1]
    with pytest.raises(UserError, match=r"model.vocab_size = 69999: must be at least 70000.*words.json") as caught:
        open_tokens(text_documents(str(stories)), source="x", tokenizer=name, vocab_size=69_999)
    assert "\n" not in str(caught.value)


def test_a_corpus_without_text_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n\t")
    documents = text_documents(str(tmp_path / "a.txt"))
    with pytest.raises(UserError, match=r"data.source = 'text:a.txt': holds no text"):
        open_tokens(documents, source="text:a.txt", tokenizer="bpe", vocab_size=300)


def test_a_cache_folder_that_cannot_be_is_the_users_to_mend(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot use the cache of tokens: Not a directory"):
        open_tokens(text_documents(str(stories)), source="x", tokenizer="bpe", vocab_size=300)


def test_progress_goes_from_start_to_end(cache: Path, stories: Path) -> None:
    said: dict[str, list[tuple[int, int]]] = {}
    documents = text_documents(str(stories))
    open_tokens(
        documents,
        source="x",
        tokenizer="bpe",
        vocab_size=300,
        progress=lambda done, total, label: said.setdefault(label, []).append((done, total)),
    )
    assert list(said) == ["reading", "training the tokenizer", "encoding"]
    for steps in said.values():
        assert steps == sorted(steps)
        assert all(0 < done <= total for done, total in steps)
    assert said["encoding"][-1][0] == said["encoding"][-1][1]


def test_modes_are_those_of_the_umask(open_stories: Callable[..., TokenStore], cache: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = open_stories().folder
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (folder, cache / "measured")}
    assert modes == {0o755}
    assert {path.stat().st_mode & 0o777 for path in [*folder.iterdir(), *(cache / "measured").iterdir()]} == {0o644}
