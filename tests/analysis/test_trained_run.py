"""The papers' story on a run that the test itself trains: 1.4 M tokens, 15 s of CPU, as much again for analysis."""

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import icl_jax
from icl_jax.analysis import analyze
from icl_jax.config import parse_config
from icl_jax.rundir import RunDir
from tests.train.runs import finish, start_cli

CONFIG = """
[model]
n_layers = 2
d_model = 64
n_heads = 2
n_ctx = 64
vocab_size = 64
[data]
source = "repeats"
held_out_rows = 256
[data.repeats]
n_phrases = 1
phrase_prob = 0.3
[train]
n_steps = 700
batch_size = 32
[optimizer]
schedule = "constant"
[snapshots]
n_linear = 14
n_log = 0
[probes]
n_probes = 50
"""
INDUCTION = 0.3


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.toml").write_text(CONFIG)
    training = start_cli("train", folder / "config.toml", "--run", folder / "run", "--devices", "1", is_long=True)
    status, _, err = finish(training)
    assert (status, err) == (0, "")
    return folder / "run"


@pytest.fixture(scope="module")
def analysis(run_path: Path) -> xr.Dataset:
    wanted = ["ablation_effects", "head_scores", "composition", "copying", "bump", "pca", "loss_derivative"]
    analyze(RunDir.open(str(run_path)), only=[*wanted, "token_classes"])
    return icl_jax.open_run(str(run_path)).analysis.load()


def test_in_context_learning_forms(analysis: xr.Dataset) -> None:
    score = analysis["icl_windowed"].values
    assert abs(score[0]) < 0.1
    assert score[-1] < -2
    assert str(analysis["change_status"].values) == "found"
    assert float(analysis["change_size"][0]) < -1
    assert float(analysis["change_share"][0]) > 0.4
    assert float(analysis["steepest_drop"]) < -1.5
    assert float(analysis["steepest_share"]) > 0.6
    assert float(analysis["induction_correct_change"]) < -2
    assert float(analysis["induction_wrong_change"]) > 0.3
    assert abs(float(analysis["new_prefix_change"])) < 0.2


def test_induction_heads_by_score_are_the_heads_whose_ablation_undoes_the_change(analysis: xr.Dataset) -> None:
    end = int(analysis["step_after"])
    is_induction = analysis["prefix_matching"].sel(snapshot=end).values > INDUCTION
    assert is_induction.tolist() == [[False, False], [True, True]], "keys can be matched in the second layer only"
    at_end = analysis.sel(selected=end)
    undone = -at_end["pattern_preserving_along_change"].values
    np.testing.assert_array_equal(undone > 0.05, is_induction)
    assert undone[is_induction].min() > 0.1
    assert np.abs(undone[~is_induction]).max() < 0.06
    # Without them in-context learning is worse; with patterns held, the others hardly matter to it.
    cost = at_end["pattern_preserving_icl_effect"].values
    assert cost[is_induction].min() > 0.1
    assert np.abs(cost[~is_induction]).max() < 0.1


def test_previous_token_heads_matter_under_full_ablation_only(analysis: xr.Dataset) -> None:
    end = int(analysis["step_after"])
    previous = analysis["previous_token"].sel(snapshot=end).values
    untrained = analysis["previous_token"].values[0].mean()
    is_previous = previous > 1.5 * untrained
    assert is_previous.tolist() == [[True, True], [False, False]]
    at_end = analysis.sel(selected=end)
    full, preserving = (-at_end[f"{kind}_along_change"].values for kind in ("full", "pattern_preserving"))
    assert full[is_previous].max() > 0.1
    assert (full - preserving)[is_previous].min() > 0.05
    assert (at_end["full_icl_effect"].values - at_end["pattern_preserving_icl_effect"].values)[is_previous].min() > 0.1


def test_k_composition_between_them_is_what_stands_above_random(analysis: xr.Dataset) -> None:
    last = {name: analysis[f"{name}_composition_z"].values[-1][0, :, 1, :] for name in "qkv"}
    assert last["k"].min() > 4
    assert max(last["q"].max(), last["v"].max()) < 2
    first = analysis["k_composition_z"].values[0][0, :, 1, :]
    assert np.abs(first).max() < 4


def test_induction_heads_copy(analysis: xr.Dataset) -> None:
    assert analysis["copying_eigenvalue"].values[-1][1].min() > 0.5


def test_context_helps_only_after_the_change(analysis: xr.Dataset) -> None:
    derivative = analysis["loss_derivative"].values[:, analysis["bin_index"].values > 4].mean(axis=1)
    assert abs(derivative[0]) < 0.1
    assert derivative[-1] < -0.5


def test_nothing_is_missing_without_a_reason(analysis: xr.Dataset) -> None:
    for name, variable in analysis.variables.items():
        assert "UNEXPECTED" not in variable.attrs.get("missing", ""), name
    absent = json.loads(analysis.attrs["absent"])
    assert absent["smear"] == "model.smeared_keys = false: keys are not smeared"


def test_a_run_opens_in_python(run_path: Path, analysis: xr.Dataset) -> None:
    run = icl_jax.open_run(str(run_path))
    assert run.snapshots == list(range(0, 701, 50))
    assert run.config == parse_config(CONFIG)
    assert run.record["loss"].shape == (700, 64)
    tokens = icl_jax.analysis.repeated_tokens(
        run.held_out.candidates, run.held_out.bos_id, 64, n_sequences=10, repeat_len=25, n_repeats=4, seed=0
    )
    scores = icl_jax.analysis.prefix_matching(run.params(700), tokens, run.config.model)
    np.testing.assert_allclose(scores, analysis["prefix_matching"].values[-1], atol=1e-5)
    assert "2 layers, 700 steps, 15 snapshots" in repr(run)
