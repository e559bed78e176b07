"""Tokenizers and encoding."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from icl_jax.config import UserError
from icl_jax.data.text import tokenizing
from icl_jax.data.text.documents import measure_documents, text_documents
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
    with pytest.raises(UserError, match=r"gone.json': cannot read the file: No such file"):
        load_tokenizer(str(tmp_path / "gone.json"))


def test_a_name_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        @staticmethod
        def from_pretrained(name: str) -> Tokenizer:
            raise Exception(f"{name}: 404\nmany\nlines")

    monkeypatch.setattr(tokenizing, "Tokenizer", Hub)
    with pytest.raises(UserError, match=r"data.tokenizer = 'nope': must be .*\(nope: 404 many lines\)"):
        load_tokenizer("nope")


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
