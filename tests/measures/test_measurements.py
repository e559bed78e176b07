"""What is asked of every measurement, of those that read activations; and numbers that do not depend on batches."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr

from icl_jax.analysis import session
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import ModelConfig
from icl_jax.measures import ablation, head_scores, held_out_loss, map_snapshots, smear
from icl_jax.measures.measurement import Derived, Measurement
from icl_jax.measures.names import measurement_names
from icl_jax.measures.table import TABLE
from icl_jax.report.phase_table import phase_table
from tests.analysis.random_snapshots import check, stacked
from tests.analysis.small_runs import random_run

MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=17, vocab_size=19, smeared_keys=True)


@pytest.mark.parametrize(
    "measurement",
    [held_out_loss.MEASUREMENT, head_scores.MEASUREMENT, ablation.MEASUREMENT, smear.MEASUREMENT],
    ids=lambda measurement: measurement.name,
)
def test_answers_have_the_announced_shapes_and_do_not_depend_on_the_batch(measurement: Measurement) -> None:
    check(measurement, MODEL, stacked(MODEL, 3))


def test_smear_is_a_share() -> None:
    params = stacked(MODEL, 1) | {"smear_alpha": np.array([[[0.0, 20, -20], [1, -1, 0]]], np.float32)}
    own = check(smear.MEASUREMENT, MODEL, params)["smear_own"]
    np.testing.assert_allclose(own, [[[0.5, 1, 0], [0.7311, 0.2689, 0.5]]], atol=1e-4)


def test_each_variable_has_one_home_and_says_what_it_is() -> None:
    names = [name for entry in TABLE for name in entry.variables]
    assert len(names) == len(set(names))
    assert len({entry.name for entry in TABLE}) == len(TABLE)
    assert measurement_names() == [entry.name for entry in TABLE]
    known = set(names)
    for entry in TABLE:
        assert entry.source
        for name, variable in entry.variables.items():
            assert variable.text, name
            assert variable.units, name
            assert "\n" not in variable.text, name
        if isinstance(entry, Derived):
            assert set(entry.needs) <= known, entry.name


@pytest.mark.parametrize(
    "changes", [{}, {"d_mlp": 7, "norm": "layernorm", "positions": "rotary", "tied_unembedding": True}]
)
def test_all_of_the_table_on_snapshots_one_by_one_and_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict
) -> None:
    monkeypatch.setattr(map_snapshots, "local_devices", lambda: jax.local_devices()[:1])  # compiles once
    run = random_run(tmp_path / "run", dataclasses.replace(MODEL, **changes), (0, 1, 2, 5))
    together = analyze(run)
    (run.path / "analysis_parts").rmtree()
    monkeypatch.setattr(session, "_MAX_BATCH", 1)
    xr.testing.assert_allclose(analyze(run), together, rtol=1e-5, atol=1e-6)
    for name, variable in together.variables.items():
        assert "UNEXPECTED" not in variable.attrs.get("missing", ""), name
    assert {"held_out_loss", "head_scores", "ablation"} <= {v.attrs["measurement"] for v in together.data_vars.values()}


def test_what_is_kept_of_the_losses_is_where_the_coordinates_say(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", MODEL, (0, 3), n_rows=9)
    found = analyze(run, only=["held_out_loss", "ablation"])
    rows = run.load_held_out().rows
    for i, step in enumerate((0, 3)):
        loss_BT = np.asarray(held_out_loss.held_out_loss(run.load_params(step), rows, MODEL))
        single = loss_BT[found["token_row"].values, found["token_position"].values]
        np.testing.assert_allclose(found["token_loss"].values[i], single, atol=1e-5)
        np.testing.assert_allclose(found["loss_by_position"].values[i], loss_BT.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(found["example_loss"].values[i], loss_BT[:8], atol=1e-5)
        # The ablations' intact model is the same one, on the first of the same tokens.
        n_ablated = found.sizes["ablated_token"]
        np.testing.assert_allclose(found["intact_token_loss"].values[i], single[:n_ablated], atol=1e-5)
    targets = rows[found["token_row"].values, found["token_position"].values + 1]
    np.testing.assert_array_equal(found["token_id"], targets)
    np.testing.assert_array_equal(found["example_id"], rows[:8, 1:])


@pytest.mark.parametrize("steps", [(0,), (0, 3), (2, 3)])
def test_one_or_two_snapshots_are_enough_for_what_needs_no_curve(tmp_path: Path, steps: tuple[int, ...]) -> None:
    names = [entry.name for entry in TABLE]
    names = [*names[: names.index("head_scores") + 1], "copying", "head_changes"]
    found = analyze(random_run(tmp_path / "run", MODEL, steps), only=names)
    absent = json.loads(found.attrs["absent"])
    assert {"bump", "pca"} <= set(absent)
    assert "three snapshots or more" in absent["pca"]
    assert ("loss_by_log_tokens" in absent) == (0 in steps)
    assert {"icl_windowed", "prefix_matching", "step_before"} <= set(found)
    assert (int(found["step_before"]), int(found["step_after"])) == (steps[0], steps[-1])
    assert str(found["change_status"].values) == "too few points"
    assert set(found["head_change_status"].values.flat) == {"too few points"}
    lines = phase_table(found)
    assert any("not tested: fewer than eight points" in line for line in lines)
    assert not any("no change found" in line for line in lines)
    assert any("steepest fall" in line for line in lines) == (len(steps) > 1)
    assert not any("nan" in line for line in phase_table(found))
    for name, variable in found.variables.items():
        assert "UNEXPECTED" not in variable.attrs.get("missing", ""), name
