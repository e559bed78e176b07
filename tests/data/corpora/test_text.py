"""Rows out of a stream of tokens."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from icl_jax.cli.data import data_show
from icl_jax.config import Config, UserError
from icl_jax.data import open_corpus, row_ids
from icl_jax.data.corpora.text import TextCorpus
from icl_jax.data.text import found_again
from icl_jax.report.reported_run import ReportedRun
from icl_jax.train.start import open_or_create


@pytest.fixture(scope="module")
def corpus(stories: Path, make_config: Callable[..., Config]) -> TextCorpus:
    corpus = open_corpus(make_config(source=f"text:{stories}"))
    assert isinstance(corpus, TextCorpus)
    return corpus


def test_each_token_is_predicted_once_by_training_or_held_out_rows(corpus: TextCorpus) -> None:
    stream = corpus.store.tokens
    n_rows = corpus.n_rows + corpus.n_held_out
    assert n_rows == (len(stream) - 1) // corpus.n_ctx
    place = np.concatenate([corpus.stream_rows(np.arange(corpus.n_rows)), corpus._held_out_ids])
    np.testing.assert_array_equal(np.sort(place), np.arange(n_rows))
    rows = np.concatenate([corpus.rows(np.arange(corpus.n_rows)), corpus.held_out(corpus.n_held_out)])
    predicted = rows[np.argsort(place), 1:].reshape(-1)
    np.testing.assert_array_equal(predicted, stream[1 : 1 + n_rows * corpus.n_ctx])


def test_every_row_starts_with_bos_and_so_does_every_document(corpus: TextCorpus, stories: Path) -> None:
    rows = np.concatenate([corpus.rows(np.arange(corpus.n_rows)), corpus.held_out(corpus.n_held_out)])
    assert rows.shape[1] == corpus.n_ctx + 1 == 20
    assert rows.dtype == np.int32
    assert (rows[:, 0] == corpus.bos_id).all()
    assert rows.max() < corpus.vocab_size
    starts = np.flatnonzero(corpus.store.tokens == corpus.bos_id)
    texts = ["".join(corpus.decode(part[1:])) for part in np.split(corpus.store.tokens, starts)[1:]]
    paths = sorted(path for path in stories.rglob("*.txt") if path.read_text().strip())
    assert texts == [path.read_text().replace("\n", "\\n") for path in paths]


@given(ids=st.lists(st.integers(0, 50), max_size=7))
def test_a_row_depends_on_its_id_alone(corpus: TextCorpus, ids: list[int]) -> None:
    rows = corpus.rows(np.array(ids, np.int64))
    assert rows.shape == (len(ids), corpus.n_ctx + 1)
    for i, row in zip(ids, rows, strict=True):
        np.testing.assert_array_equal(corpus.rows(np.array([i]))[0], row)


def test_training_rows_keep_the_order_of_the_stream(corpus: TextCorpus) -> None:
    place = corpus.stream_rows(np.arange(corpus.n_rows))
    assert (np.diff(place) > 0).all()
    assert not np.isin(place, corpus._held_out_ids).any()


def test_the_split_is_fixed_by_the_seed(corpus: TextCorpus, stories: Path, make_config: Callable[..., Config]) -> None:
    again = open_corpus(make_config(source=f"text:{stories}"))
    np.testing.assert_array_equal(again.held_out(11), corpus.held_out(11))
    np.testing.assert_array_equal(again.held_out(4), corpus.held_out(11)[:4])
    other = open_corpus(make_config(source=f"text:{stories}", seed=1))
    assert not np.array_equal(other.held_out(11), corpus.held_out(11))


def test_ids_out_of_range_are_refused(corpus: TextCorpus) -> None:
    for bad in ([-1], [corpus.n_rows], [[0]]):
        with pytest.raises(IndexError, match="row ids must be"):
            corpus.rows(np.array(bad))
    for n in (-1, 12):
        with pytest.raises(IndexError, match="there are 11"):
            corpus.held_out(n)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"n_ctx": 20}, {"held_out_rows": 12}, {"vocab_size": 301}, {"source": "text:{}/part0"}],
)
def test_the_fingerprint_tells_corpora_apart(
    corpus: TextCorpus, stories: Path, make_config: Callable[..., Config], change: dict[str, Any]
) -> None:
    fields = {"source": "text:{}"} | change
    fields["source"] = fields["source"].format(stories)
    assert open_corpus(make_config(**fields)).fingerprint != corpus.fingerprint


def test_the_fingerprint_is_the_same_wherever_the_files_lie(
    corpus: TextCorpus, cache: Path, stories: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    shutil.copytree(stories, tmp_path / "moved")
    moved = open_corpus(make_config(source=f"text:{tmp_path / 'moved'}"))
    assert moved.fingerprint == corpus.fingerprint
    np.testing.assert_array_equal(moved.rows(np.arange(9)), corpus.rows(np.arange(9)))
    story = tmp_path / "moved" / "part0" / "story00.txt"
    story.write_text(story.read_text().replace("a", "b", 1))
    assert open_corpus(make_config(source=f"text:{tmp_path / 'moved'}")).fingerprint != corpus.fingerprint


def test_probe_tokens_leave_out_bos_rare_common_and_unseen_ids(corpus: TextCorpus) -> None:
    tokens, counts = corpus.probe_tokens(), corpus.store.counts_V
    n_seen = np.count_nonzero(counts) - 1
    assert len(tokens) == n_seen - 2 * round(0.05 * n_seen)
    assert corpus.bos_id not in tokens
    assert counts[tokens].min() > 0
    left_out = np.setdiff1d(np.flatnonzero(counts), [*tokens, corpus.bos_id])
    assert ((counts[left_out] >= counts[tokens].max()) | (counts[left_out] <= counts[tokens].min())).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out_rows": 10**6}, r"data.held_out_rows = 1000000: must be less than \d+, the rows of data.source"),
        ({"n_ctx": 10**6}, r"model.n_ctx = 1000000: must be less than \d+, the tokens of data.source"),
        ({"vocab_size": 200}, r"model.vocab_size = 200: must be 258 or more"),
        ({"source": "text:no/such/*.txt"}, r"data.source = 'text:no/such/\*.txt': no file matches"),
        ({"tokenizer": "no/such.json"}, r"data.tokenizer = 'no/such.json': cannot read the file"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    stories: Path, make_config: Callable[..., Config], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_corpus(make_config(**({"source": f"text:{stories}"} | fields)))
    assert "\n" not in str(caught.value)


def test_a_split_that_leaves_one_training_row_works(
    corpus: TextCorpus, stories: Path, make_config: Callable[..., Config]
) -> None:
    n_all = corpus.n_rows + corpus.n_held_out
    tight = open_corpus(make_config(source=f"text:{stories}", held_out_rows=n_all - 1))
    assert tight.n_rows == 1
    assert tight.rows(row_ids(0, 3, 2, 1)).shape == (2, 20)
    with pytest.raises(UserError, match="held_out_rows"):
        open_corpus(make_config(source=f"text:{stories}", held_out_rows=n_all))


def test_a_tokenizer_of_the_users(
    corpus: TextCorpus, stories: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    assert corpus.tokenizer_json is not None
    path = tmp_path / "mine.json"
    path.write_text(corpus.tokenizer_json.replace("<|bos|>", "<|endoftext|>"))
    mine = open_corpus(make_config(source=f"text:{stories}", tokenizer=str(path), vocab_size=1000))
    assert mine.vocab_size == 300
    np.testing.assert_array_equal(mine.rows(np.arange(5)), corpus.rows(np.arange(5)))
    assert mine.decode([mine.bos_id]) == ["<|endoftext|>"]
    with pytest.raises(UserError, match=r"model.vocab_size = 299: must be at least 300"):
        open_corpus(make_config(source=f"text:{stories}", tokenizer=str(path), vocab_size=299))


@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=4, max_size=9), data=st.data())
def test_held_out_rows_that_are_also_in_training_are_found(rows: list[list[int]], data: st.DataObject) -> None:
    """At any place, but not where the row itself, or another that is held out, or what no row predicts, takes part."""
    held_out = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True, min_size=1, max_size=3)))
    stream = np.array([7, *(token for row in rows for token in row), 9, 9], np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found_again, "_CHUNK", 5)
        found = found_again.rows_found_again(stream, 3, held_out)
    trained = "".join("x" * 3 if i in held_out else "".join(map(str, row)) for i, row in enumerate(rows))
    assert found.tolist() == ["".join(map(str, rows[i])) in trained for i in held_out]


def test_a_text_that_is_there_twice_is_said(
    make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = " ".join(np.random.default_rng(1).choice(["cat", "dog", "sat", "on", "mat", "ran"], 900))
    (tmp_path / "a.txt").write_text(text)
    once = open_corpus(make_config(source=f"text:{tmp_path}"))
    assert isinstance(once, TextCorpus)
    assert once.held_out_again == []
    (tmp_path / "b.txt").write_text(text)
    config = make_config(source=f"text:{tmp_path}")
    twice = open_corpus(config)
    assert isinstance(twice, TextCorpus)
    n_again = len(twice.held_out_again)
    assert n_again > 5
    data_show(config, Console())
    assert f"{n_again} of 11 held-out rows are also in training: " in capsys.readouterr().out
    run = open_or_create(str(tmp_path / "run"), config, twice)
    assert run.load_record().attrs["held_out_rows_in_training"] == n_again
    assert f"; {n_again} of 11 held-out rows are also in training" in ReportedRun(run, "run").details
