"""Tokenizers and encoding."""

import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from icl_jax.config import UserError
from icl_jax.data.text import tokenizing
from icl_jax.data.text.documents import measure_documents, text_documents
from icl_jax.data.text.text_ids import encode_text
from icl_jax.data.text.tokenizing import (
    BOS,
    count_ids,
    decode_text,
    decode_tokens,
    encode_documents,
    find_bos,
    load_tokenizer,
    parse_tokenizer,
    split_pieces,
    train_bpe,
)
from icl_jax.telling import printable


class Texts(list[str]):
    """Documents in memory."""

    identity = "texts"
    is_cut = False

    @property
    def n_bytes(self) -> int:
        return sum(len(text.encode()) for text in self)


def encode(tokenizer: Tokenizer, *texts: str) -> list[int]:
    documents = Texts(texts)
    return np.concatenate(list(encode_documents(tokenizer, documents, documents.n_bytes, "bpe"))).tolist()


@pytest.fixture(scope="module")
def bpe(stories: Path) -> Tokenizer:
    documents = text_documents(str(stories))
    return train_bpe(documents, measure_documents(documents)[1], 400)


@given(text=st.text(min_size=1))
def test_encoding_loses_nothing(bpe: Tokenizer, text: str) -> None:
    ids = encode(bpe, text)
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert bpe.decode(ids[1:]) == text


def test_every_document_starts_with_bos(bpe: Tokenizer) -> None:
    ids = encode(bpe, "one text", "another", "a third")
    assert ids.count(0) == 3
    starts = [i for i, token in enumerate(ids) if token == 0]
    assert [bpe.decode(ids[a + 1 : b]) for a, b in zip(starts, [*starts[1:], None], strict=True)] == [
        "one text",
        "another",
        "a third",
    ]


def test_text_that_reads_like_bos_is_text(bpe: Tokenizer) -> None:
    text = f"a{BOS}b {BOS}"
    ids = encode(parse_tokenizer(bpe.to_str()), text)
    assert ids.count(0) == 1
    assert bpe.decode(ids[1:], skip_special_tokens=False) == text


def test_bos_said_a_thousand_times_is_still_text() -> None:
    documents = Texts([f"{BOS} {BOS}\n" * 1000])
    tokenizer = train_bpe(documents, documents.n_bytes, 300)
    assert encode(tokenizer, documents[0]).count(0) == 1


@given(text=st.text(alphabet=" \nab", max_size=60), limit=st.integers(1, 9))
def test_pieces_make_up_the_text(text: str, limit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PIECE_CHARS", limit)
        pieces = list(split_pieces(text))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= limit for piece in pieces) or pieces == [""]
    for piece, after in pairwise(pieces):
        assert piece.endswith("\n") or after.startswith(" ") or not set("\n ") & set(piece[1:])


def test_long_documents_are_encoded_whole(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_PIECE_CHARS", 10)
    monkeypatch.setattr(tokenizing, "_PIECES_PER_CALL", 3)
    text = "abc abd jih\nghi " * 20
    ids = encode(bpe, text, "more")
    assert ids.count(0) == 2
    assert bpe.decode(ids[1 : ids.index(0, 1)]) == text


@pytest.mark.parametrize("prepend", ["always", "first", "never"])
def test_what_the_trained_tokenizer_takes_in_pieces_others_take_whole(
    prepend: str, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The standard library's files, whose numbers are published, have long ones."""
    monkeypatch.setattr(tokenizing, "_PIECE_CHARS", 10)
    documents = Texts(["a b\nb a b " * 9])
    monkeypatch.setattr(documents, "is_cut", True)
    other = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "▁": 3, "\n": 4}, []))
    other.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    for tokenizer, name in ((other, "tokenizer.json"), (bpe, "bpe")):
        found = np.concatenate(list(encode_documents(tokenizer, documents, documents.n_bytes, name))).tolist()[1:]
        whole = tokenizer.encode(documents[0], add_special_tokens=False).ids
        pieces = [i for p in split_pieces(documents[0]) for i in tokenizer.encode(p, add_special_tokens=False).ids]
        assert found == (pieces if name == "bpe" else whole)


def test_training_is_deterministic_and_fits(stories: Path, bpe: Tokenizer) -> None:
    documents = text_documents(str(stories))
    again = train_bpe(documents, measure_documents(documents)[1], 400)
    assert again.to_str() == bpe.to_str()
    assert count_ids(bpe) == 400
    assert find_bos(bpe, "bpe") == 0
    assert count_ids(train_bpe(Texts(["ab"]), 2, 10_000)) == 258


def test_a_large_corpus_is_sampled_evenly_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_SAMPLE_BYTES", 2000)
    documents = Texts([f"{i:04}" for i in range(5000)])
    sample = list(tokenizing._sample(documents, documents.n_bytes, None))
    assert sample == list(tokenizing._sample(documents, documents.n_bytes, None))
    assert 400 < len(sample) < 600
    assert np.mean([int(text) for text in sample]) == pytest.approx(2500, abs=300)


@pytest.mark.parametrize("vocab_size", [2, 256, 257])
def test_a_vocabulary_without_room_for_bytes_is_refused(vocab_size: int) -> None:
    with pytest.raises(UserError, match=f"model.vocab_size = {vocab_size}: must be 258 or more"):
        train_bpe(Texts(["ab"]), 2, vocab_size)


def test_tokenizer_files(tmp_path: Path, bpe: Tokenizer) -> None:
    path = tmp_path / "mine.json"
    bpe.enable_truncation(3)
    path.write_text(bpe.to_str(), encoding="utf-8")
    bpe.no_truncation()
    assert len(encode(load_tokenizer(str(path)), "abcdefghij" * 9)) > 20
    for content in (b"{}", b"not json\n at all", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"data.tokenizer = .*mine.json") as caught:
            load_tokenizer(str(path))
        assert "\n" not in str(caught.value)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"pipe': is no regular file"):
        load_tokenizer(str(tmp_path / "pipe"))
    with pytest.raises(UserError, match=r"gone.json': cannot read the file: No such file"):
        load_tokenizer(str(tmp_path / "gone.json"))


def test_a_name_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def from_pretrained(name: str) -> Tokenizer:
            raise Exception(f"{name}: 404\nmany\nlines")

    monkeypatch.setattr(tokenizing, "hub_unreachable", lambda: None)
    monkeypatch.setattr(tokenizing, "Tokenizer", Hub)
    with pytest.raises(UserError, match=r"data.tokenizer = 'nope': must be .*\(nope: 404 many lines\)"):
        load_tokenizer("nope")


def test_a_hub_that_does_not_answer_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_tokenizer("somebody/nothing")
    assert time.monotonic() - started < 10
    assert str(caught.value) == (
        "data.tokenizer = 'somebody/nothing': is no file or folder here, and no tokenizer that was fetched from the"
        " Hugging Face hub before (http://127.0.0.1:9 cannot be reached: [Errno 111] Connection refused)"
    )


def test_a_path_that_is_there_is_a_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bpe: Tokenizer) -> None:
    monkeypatch.setattr(tokenizing, "hub_unreachable", lambda: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    with pytest.raises(UserError, match=r"data.tokenizer = 'tok': is a folder without a tokenizer\.json"):
        load_tokenizer("tok")
    (tmp_path / "tok" / "tokenizer.json").write_text(bpe.to_str(), encoding="utf-8-sig")
    (tmp_path / "mine").write_text(bpe.to_str(), encoding="utf-8")
    for name in ("tok", "mine", str(tmp_path / "tok")):
        assert load_tokenizer(name).to_str() == bpe.to_str()


def test_a_special_token_is_bos_before_an_ordinary_one() -> None:
    tokenizer = word_level("[UNK]", "<s>", "a")
    assert find_bos(tokenizer, "x") == 1
    tokenizer.add_special_tokens(["<|endoftext|>"])
    assert find_bos(tokenizer, "x") == 3


def small_tokenizers() -> dict[str, Tokenizer]:
    """One of each kind of model, all with BOS, over a small alphabet."""
    made = {}
    bytes_bpe = train_bpe(Texts(["abab cab bac\n abc aabb"] * 9), 200, 280)
    made["byte-level BPE"] = bytes_bpe
    pieces = {"<s>": 0, "▁": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "▁a": 6, "▁ab": 7}
    merges = [("a", "b"), ("▁", "a"), ("▁", "ab")]
    for prepend in ("always", "first", "never"):
        for falls_back in (True, False):
            vocab = pieces | ({f"<0x{i:02X}>": 8 + i for i in range(256)} if falls_back else {})
            tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=falls_back))
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
            tokenizer.decoder = decoders.Sequence([
                decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend, split=False), decoders.Fuse(),
            ])  # fmt: skip
            made[f"BPE, {prepend}, {'bytes' if falls_back else 'no bytes'}"] = tokenizer
    scores = [("<s>", 0.0), ("▁", -2.0), ("a", -3.0), ("b", -3.1), ("c", -3.2), ("▁ab", -3.5), ("ab", -4.0)]
    unigram = Tokenizer(models.Unigram(scores, unk_id=None))
    unigram.pre_tokenizer, unigram.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made["Unigram"] = unigram
    word_piece = Tokenizer(models.WordPiece({"<s>": 0, "a": 1, "##a": 2, "b": 3, "##b": 4, "c": 5}, unk_token="[UNK]"))
    word_piece.pre_tokenizer, word_piece.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    made["WordPiece"] = word_piece
    words = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "ab": 3, "cab": 4}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made["WordLevel"] = words
    return made


SMALL = small_tokenizers()


def _encoded(tokenizer: Tokenizer, text: str) -> tuple[list[int], str]:
    try:
        return encode(tokenizer, text)[1:], ""
    except UserError as error:
        return [], str(error)


@pytest.mark.parametrize("kind", SMALL)
@given(text=st.text(alphabet="aab bcé☃", min_size=1, max_size=30))
@settings(max_examples=40)
def test_a_text_comes_back_from_its_ids_or_is_refused(kind: str, text: str) -> None:
    tokenizer = SMALL[kind]
    ids, refusal = _encoded(tokenizer, text)
    if refusal:
        assert "has no token for" in refusal
        assert not kind.endswith(", bytes")
        with pytest.raises(UserError):
            encode_text(text, tokenizer, 1000)
        return
    back = tokenizer.decode(ids)
    if kind in ("WordPiece", "WordLevel"):  # which keep no blanks
        assert back.split() == text.split()
    else:
        assert back.strip() == text.strip()


def test_what_cannot_be_said_is_counted_and_named() -> None:
    tokenizer = SMALL["BPE, always, no bytes"]
    lost = "has no token for 6 of 10 characters, such as 'x' 'y'"
    with pytest.raises(UserError, match=f"data.tokenizer = 'bpe': {lost} of the corpus, and would leave them out"):
        encode(tokenizer, "axxxxb", "abyy")
    with pytest.raises(UserError, match="TEXT = 'axb': the run's tokenizer has no token for 1 of 3 characters"):
        encode_text("axb", tokenizer, 1000)
    with pytest.raises(UserError, match=r"data.tokenizer = 'bpe': has no token for 'dog' of the corpus \("):
        encode(SMALL["WordLevel"], "a b", "ab dog a")
    with pytest.raises(UserError, match=r"TEXT = 'ab dog': holds what the run's tokenizer does not know: 'dog' \("):
        encode_text("ab dog", SMALL["WordLevel"], 1000)


@pytest.mark.parametrize("kind", [kind for kind in SMALL if "no bytes" not in kind])
def test_a_long_document_has_the_ids_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(np.random.default_rng(3).choice(["ab", "a", "b", "cab", "ab  ab", "b\n"], 4000))
    text = text.replace("\n", " ") if kind == "Unigram" else text.replace("cab", "ab") if kind == "WordPiece" else text
    whole = SMALL[kind].encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(tokenizing, "_WINDOW_CHARS", 1000)
    monkeypatch.setattr(tokenizing, "_OVERLAP_CHARS", 200)
    monkeypatch.setattr(tokenizing, "_AGREEING", 8)
    n_windows = 0
    window = tokenizing._window

    def counted(*args: Any) -> Any:
        nonlocal n_windows
        n_windows += 1
        return window(*args)

    monkeypatch.setattr(tokenizing, "_window", counted)
    assert encode(SMALL[kind], text)[1:] == whole
    assert n_windows > 5


def word_level(*words: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_bos_is_found_under_its_usual_names() -> None:
    assert find_bos(word_level("[UNK]", "a", "<s>"), "x") == 2
    assert find_bos(word_level("[UNK]", "<|endoftext|>"), "x") == 1
    with pytest.raises(UserError, match=r"data.tokenizer = 'x': must have a token that can start a document"):
        find_bos(word_level("[UNK]", "a"), "x")


def test_a_tokenizer_that_writes_bos_for_text_is_refused() -> None:
    tokenizer = word_level("[UNK]", "a", "<s>")
    assert encode(tokenizer, "a b") == [2, 1, 0]
    with pytest.raises(UserError, match="encodes a plain text of the corpus as its BOS"):
        encode(tokenizer, "a <s> a")


def test_tokens_show_one_by_one_and_safely(bpe: Tokenizer) -> None:
    ids = encode(bpe, "abc\x1b[31mé\n 日\u202e")
    shown = decode_tokens(bpe, ids)
    assert len(shown) == len(ids)
    assert shown[0] == BOS
    joined = "".join(shown[1:])
    assert joined.isprintable()
    assert joined.startswith("abc\\x1b[31m")
    assert "\\xe6" in joined  # the first byte of a character of three
    assert decode_tokens(bpe, [5, 9999])[1] == "<?9999>"
    named = parse_tokenizer(bpe.to_str())
    named.add_special_tokens(["<é>"])
    assert decode_tokens(named, [400]) == ["<é>"]


def test_other_tokenizers_show_too() -> None:
    tokenizer = word_level("[UNK]", "▁a\n", "Ġb")
    assert decode_tokens(tokenizer, [1, 2]) == ["▁a\\n", "Ġb"]
    tokenizer.decoder = decoders.Metaspace()
    assert decode_tokens(tokenizer, [1])[0].strip() == "a\\n"


def test_text_keeps_its_lines_and_nothing_else(bpe: Tokenizer) -> None:
    text = "one\n\ttwo\x1b]0;\x07 日\n"
    assert decode_text(bpe, encode(bpe, text)) == f"{BOS}one\n\\ttwo\\x1b]0;\\x07 日\n"


@given(text=st.text())
def test_printable_is(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize("make", [lambda: word_level("[UNK]", "<s>", "A", "b")])
def test_normalising_tokenizers_work(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip()])
    assert encode(tokenizer, " A b ") == [1, 2, 3]
