import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from etils import epath

from icl_jax.config import UserError
from icl_jax.data import open_corpus, row_ids
from icl_jax.rundir import HeldOut
from icl_jax.rundir.held_out import load_held_out, n_rows_kept
from icl_jax.rundir.verify import problems
from icl_jax.train.held_out import take_held_out
from tests.rundir.made_run import make_run, run_config
from tests.train.runs import tiny_config

ROWS = np.array([[0, 3, 4, 5], [0, 5, 5, 1]], np.int32)


def _replaced(path: Path, **changes: object) -> list[str]:
    run = make_run(path, run_config())
    held_out = run.load_held_out()
    dataclasses.replace(held_out, **changes).save(run.path / "held_out.zarr")
    return list(problems(run))


@pytest.mark.parametrize("counts", [None, np.arange(36, dtype=np.uint32).reshape(6, 6)])
def test_what_is_saved_is_loaded(tmp_path: Path, counts: np.ndarray | None) -> None:
    path = epath.Path(tmp_path / "held_out.zarr")
    HeldOut(ROWS, np.array([2, 3], np.int32), 0, counts).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert xr.open_zarr(str(path))["rows"].dims == ("row", "token")
        found = load_held_out(path)
    np.testing.assert_array_equal(found.rows, ROWS)
    np.testing.assert_array_equal(found.candidates, [2, 3])
    assert found.bos_id == 0
    if counts is None:
        assert found.bigram_counts is None
    else:
        np.testing.assert_array_equal(found.bigram_counts, counts)


def test_labels_are_saved_loaded_and_hashed(tmp_path: Path) -> None:
    path = epath.Path(tmp_path / "held_out.zarr")
    labels = np.array([[0, 1, 2, 0], [0, 0, 1, 1]], np.uint8)
    plain = HeldOut(ROWS, np.array([2, 3], np.int32), 0)
    labelled = dataclasses.replace(plain, label_names=("new", "again"), labels=labels)
    assert labelled.sha256 != plain.sha256
    assert labelled.sha256 != dataclasses.replace(labelled, labels=labels[::-1]).sha256
    labelled.save(path)
    found = load_held_out(path)
    assert found.label_names == ("new", "again")
    np.testing.assert_array_equal(found.labels, labels)
    plain.save(path)
    assert load_held_out(path).labels is None


def test_a_run_of_a_labelled_corpus_takes_its_labels_along() -> None:
    config = tiny_config()
    corpus = open_corpus(config)
    held_out = take_held_out(config, corpus)
    assert held_out.label_names == ("phrase_new", "phrase_again")
    np.testing.assert_array_equal(held_out.labels, corpus.held_out_labels(len(held_out.rows)))


def test_a_missing_or_damaged_group_is_one_line(tmp_path: Path) -> None:
    path = epath.Path(tmp_path / "held_out.zarr")
    with pytest.raises(UserError, match="missing: analysis needs the held-out rows"):
        load_held_out(path)
    HeldOut(ROWS, np.array([2, 3], np.int32), 0).save(path)
    (path / "rows" / "zarr.json").write_text("{}")
    with pytest.raises(UserError, match=r"held_out\.zarr/rows: damaged: its contents have changed") as caught:
        load_held_out(path)
    assert "\n" not in str(caught.value)


def test_a_lost_chunk_is_noticed(tmp_path: Path) -> None:
    path = epath.Path(tmp_path / "held_out.zarr")
    HeldOut(ROWS, np.array([2, 3], np.int32), 0).save(path)
    chunks = [chunk for chunk in (tmp_path / "held_out.zarr" / "rows" / "c").rglob("*") if chunk.is_file()]
    assert chunks
    for chunk in chunks:
        chunk.unlink()
    with pytest.raises(UserError, match=r"held_out\.zarr/rows: damaged: 1 of its 2 files is missing"):
        load_held_out(path)


@pytest.mark.parametrize(
    ("n_held_out", "n_ctx", "expected"), [(512, 128, 512), (5000, 128, 1024), (5000, 8191, 512), (3, 2**23, 1)]
)
def test_rows_are_kept_up_to_a_number_and_a_size(n_held_out: int, n_ctx: int, expected: int) -> None:
    assert n_rows_kept(n_held_out, n_ctx) == expected


def test_verify_names_what_is_wrong(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(1, 29, (4, 8), dtype=np.int32)
    rows[:, 0] = 0
    assert _replaced(tmp_path / "good", rows=rows) == []
    assert "must be at least one row of 8 tokens" in _replaced(tmp_path / "short", rows=rows[:, :-1])[0]
    bad = rows.copy()
    bad[2, 0] = 7
    assert "row 2 does not start with BOS" in _replaced(tmp_path / "bos", rows=bad)[0]
    bad[2, 0], bad[3, 3] = 0, 29
    assert "rows holds ids outside 0 to 28" in _replaced(tmp_path / "id", rows=bad)[0]
    assert "candidates holds ids outside" in _replaced(tmp_path / "candidate", candidates=np.array([1, 29]))[0]
    run = make_run(tmp_path / "gone", run_config())
    (run.path / "held_out.zarr").rmtree()
    assert "held_out.zarr: missing" in next(iter(problems(run)))


def test_a_new_run_takes_its_rows_along_and_counts_what_the_first_steps_read() -> None:
    config = tiny_config()
    corpus = open_corpus(config)
    taken = take_held_out(config, corpus)
    np.testing.assert_array_equal(taken.rows, corpus.held_out(10))
    np.testing.assert_array_equal(taken.candidates, corpus.probe_tokens())
    expected = np.zeros((29, 29), int)
    for step in range(config.train.n_steps):
        for row in corpus.rows(row_ids(config.data.seed, step, config.train.batch_size, None)):
            np.add.at(expected, (row[:-1], row[1:]), 1)
    np.testing.assert_array_equal(taken.bigram_counts, expected)
    large = tiny_config(model={"vocab_size": 2049})
    assert take_held_out(large, open_corpus(large)).bigram_counts is None
