"""What the slider moves: patterns against a plain NumPy forward pass, and which moments and heads are kept."""

from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import ModelConfig, UserError
from icl_jax.report.figures.figure import log_positions
from icl_jax.report.page.arrays import ArrayStore, read_array
from icl_jax.report.page.moments import example_sequences, moment_indexes, moments, shown_heads
from icl_jax.report.page.token_text import TokenText
from tests.analysis.small_runs import make_run, random_rows
from tests.model.random_params import random_params
from tests.report.made_runs import add_tokenizer, made_run

_MODEL = ModelConfig(
    n_layers=1, d_model=6, n_heads=2, n_ctx=13, vocab_size=11, position_embedding="learned", norm="none"
)  # fmt: skip


def _numpy_pattern(params: dict, tokens: np.ndarray) -> np.ndarray:
    """[head, query, key] of the only layer: softmax of (x + p) W_Q . (x + p) W_K / sqrt(d_head), causal."""
    x = np.asarray(params["W_E"], np.float64)[tokens] + np.asarray(params["W_pos"], np.float64)[: len(tokens)]
    patterns = []
    for W_Q, W_K in zip(np.asarray(params["W_Q"][0], float), np.asarray(params["W_K"][0], float), strict=True):
        scores = (x @ W_Q) @ (x @ W_K).T / np.sqrt(W_Q.shape[1])
        pattern = np.zeros_like(scores)
        for q in range(len(tokens)):
            weights = np.exp(scores[q, : q + 1] - scores[q, : q + 1].max())
            pattern[q, : q + 1] = weights / weights.sum()
        patterns.append(pattern)
    return np.stack(patterns)


def test_patterns_are_those_of_the_snapshots(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", _MODEL, {})
    rows = random_rows(_MODEL, 2)
    snapshots = {step: random_params(_MODEL, seed=step) for step in range(0, 101, 10)}
    make_run(tmp_path / "kept", _MODEL, snapshots, rows)
    (tmp_path / "run" / "analysis.zarr").rename(tmp_path / "kept" / "analysis.zarr")
    run = type(run)(type(run.run).open(str(tmp_path / "kept")), "kept")
    store = ArrayStore()
    found = moments(run, store, TokenText(run))
    assert found["patterns"]["at"] == list(range(11))
    assert found["patterns"]["heads"] == [[0, 0], [0, 1]]
    assert "loss" not in found
    names = [sequence["name"] for sequence in found["patterns"]["sequences"]]
    assert names == ["random tokens, repeated", "held-out row"]
    for sequence, tokens in zip(found["patterns"]["sequences"], example_sequences(run).values(), strict=True):
        assert sequence["texts"] == [str(token) for token in tokens]
        n = len(tokens)
        shown = read_array(store.arrays[sequence["pattern"]]).reshape(11, 2, n * (n + 1) // 2)
        for at, step in ((0, 0), (7, 70)):
            pattern = _numpy_pattern(snapshots[step], tokens)
            expected = np.concatenate([pattern[:, q, : q + 1] for q in range(n)], axis=1)
            np.testing.assert_allclose(shown[at] / 255, expected, atol=0.5 / 255 + 1e-5)


def test_sequences_are_short_and_the_first_repeats(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", _MODEL, {})
    repeated, natural = example_sequences(run).values()
    np.testing.assert_array_equal(repeated[1:4], repeated[4:7])
    assert len(repeated) == 13
    np.testing.assert_array_equal(natural, run.run.load_held_out().rows[0, :13])


def test_moments_hold_the_ends_of_run_and_change() -> None:
    assert list(moment_indexes(5, (1, 3))) == [0, 1, 2, 3, 4]
    many = moment_indexes(200, (77, 78))
    assert {0, 77, 78, 199} <= set(many.tolist())
    assert len(many) <= 22
    assert np.all(np.diff(many) > 0)
    assert list(moment_indexes(1, None)) == [0]


def test_of_many_heads_those_with_the_highest_scores_are_kept(tmp_path: Path) -> None:
    model = ModelConfig(n_layers=3, d_model=14, n_heads=7, n_ctx=13, vocab_size=11)
    matching, previous = np.zeros((11, 3, 7)), np.zeros((11, 3, 7))
    matching[-1, 1:] = np.arange(1, 15).reshape(2, 7) / 20  # all of layers 1 and 2
    previous[-1, 0, [2, 5]] = 0.5, 0.6
    matching[0, 0] = 1.0  # long ago
    dims = ("snapshot", "layer", "head")
    run = made_run(tmp_path / "run", model, {"prefix_matching": (dims, matching), "previous_token": (dims, previous)})
    expected = [(0, 2), (0, 5), *((layer, head) for layer in (1, 2) for head in range(7))]
    assert shown_heads(run) == expected


def test_positions_are_all_at_first_and_sparse_later() -> None:
    assert list(log_positions(5)) == [0, 1, 2, 3, 4]
    positions = log_positions(8192)
    assert list(positions[:6]) == [0, 1, 2, 3, 4, 5]
    assert positions[-1] == 8191
    assert len(positions) <= 96


def test_a_damaged_tokenizer_is_one_line(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", _MODEL, {})
    assert TokenText(run).of(np.array([3, 10])) == ["3", "10"]
    add_tokenizer(tmp_path / "run")
    assert TokenText(run).of([3]) == ["&lt;b&gt;"]
    (tmp_path / "run" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"run/tokenizer\.json: not a tokenizer"):
        TokenText(run).of([3])
