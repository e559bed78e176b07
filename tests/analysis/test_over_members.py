"""Measurements over members against changes that were put into their records."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import icl_jax
from icl_jax.analysis import over_members as module
from icl_jax.analysis.over_members import QUANTILES, analyze_over_members, over_members, times_of
from icl_jax.analysis.recorded import recorded_of_members
from icl_jax.config import UserError
from icl_jax.maths.survival import kaplan_meier
from icl_jax.report.members_table import members_table
from icl_jax.rundir import RunDir
from icl_jax.rundir.verify import problems
from tests.analysis.made_members import DEPTH, SCALE, TOKENS, made_members
from tests.analysis.small_runs import random_run

N = 40
TENTH = SCALE * np.log(9)


@pytest.fixture(scope="module")
def places() -> np.ndarray:
    """Changes after a delay, exponentially; two members have none, one is far too late for the others."""
    times = TOKENS * (0.25 + np.random.default_rng(4).exponential(0.06, N))
    times[[5, 11]] = np.inf
    times[7] = 0.8 * TOKENS
    return times


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, places: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("over") / "run"
    analyze_over_members(made_members(path, places, snapshots=(0, 400)), {})
    return path


def test_changes_are_where_they_were_put(made: Path, places: np.ndarray) -> None:
    found = icl_jax.open_run(str(made)).analysis.load()
    has = np.isfinite(places)
    assert (found["status"].values[has] == "found").all()
    assert (found["status"].values[~has] == "none").all()
    np.testing.assert_allclose(found["start"].values[has], (places - TENTH)[has], atol=0.01 * TOKENS)
    np.testing.assert_allclose(found["end"].values[has], (places + TENTH)[has], atol=0.01 * TOKENS)
    np.testing.assert_allclose(found["width"].values[has], 2 * TENTH, atol=0.015 * TOKENS)
    np.testing.assert_allclose(found["size"].values[has], -DEPTH, atol=0.05)
    assert np.isnan(found["start"].values[~has]).all()
    inside = (found["start_interval"].values[:, 0] <= places - TENTH) & (
        places - TENTH <= found["start_interval"].values[:, 1]
    )
    assert inside[has].mean() > 0.8
    assert found["induction_layer"].values[has].tolist() == [1] * has.sum()
    assert found["induction_head"].values[has].tolist() == [k % 3 for k in np.flatnonzero(has)]
    assert set(found["previous_layer"].values.tolist()) == {0}
    assert set(found["previous_head"].values.tolist()) == {2}


def test_distribution(made: Path, places: np.ndarray) -> None:
    found = icl_jax.open_run(str(made)).analysis.load()
    has = np.isfinite(places)
    curve = kaplan_meier(np.where(has, found["start"].values, found["last_tokens"].values), has)
    assert np.array_equal(found["start_survival_times"].values, curve.times)
    assert np.array_equal(found["start_survival_share"].values, curve.share)
    assert curve.share[-1] == pytest.approx(2 / N)
    ordered = np.sort(places - TENTH)
    expected = ordered[np.ceil(QUANTILES * N).astype(int) - 1]
    is_near = np.abs(found["start_quantiles"].values - expected) < 0.01 * TOKENS
    assert is_near.all()
    assert (found["start_quantiles_low"].values <= found["start_quantiles"].values).all()
    assert (found["start_quantiles_high"].values >= found["start_quantiles"].values).all()
    assert np.isinf(found["start_quantiles_high"].values[-1])  # where fewer than 95 % may have changed


def test_what_tells_the_time_before(made: Path, places: np.ndarray) -> None:
    """Previous-token scores were made to fall with the time; of the others none tells it."""
    found = icl_jax.open_run(str(made)).analysis.load()
    assert float(found["known_tokens"]) <= np.nanmin(found["start"].values) / 2
    rho = dict(zip(found["predictor"].values.tolist(), found["predictor_rho"].values.tolist(), strict=True))
    p = dict(zip(found["predictor"].values.tolist(), found["predictor_p_value"].values.tolist(), strict=True))
    assert rho["known_previous_token"] < -0.9
    assert p["known_previous_token"] < 0.001
    assert found.attrs["predicted_r2"] > 0.5
    assert found.attrs["predicted_n"] == N - 2


def test_outliers_and_table(made: Path) -> None:
    found = icl_jax.open_run(str(made)).analysis.load()
    outliers = {one["member"]: one["why"] for one in json.loads(found.attrs["outliers"])}
    assert set(outliers) >= {5, 7, 11}
    assert outliers[5] == "none, as of 2 of 40"
    assert "start" in outliers[7]
    assert "deviations from the median" in outliers[7]
    laws = dict(zip(found["law"].values.tolist(), found["law_aic"].values[0].tolist(), strict=True))
    assert min(laws, key=lambda law: laws[law]) == "shifted exponential"
    text = "\n".join(members_table(found))
    assert "38 changed, 0 still going on, 2 without" in text
    assert "layer 1: 3" in text  # of induction, 38 or 39 members
    assert "outlier                    member 7 (seed 7): start" in text
    assert "member 5                     no change found (p = " in text
    assert list(problems(icl_jax.open_run(str(made))._run)) == []


def test_without_probes_snapshots_are_the_points(
    made: Path, places: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same curves, said to be of snapshots."""
    run, expected = RunDir.open(str(made)), icl_jax.open_run(str(made)).analysis.load()
    recorded = recorded_of_members(run)
    analyses = {
        k: xr.Dataset(
            {
                "icl_windowed": ("snapshot", one.probe_icl),
                "loss_by_position": (("snapshot", "position"), one.probe_loss[:, None]),
                **{name: (("snapshot", "layer", "head"), values) for name, values in one.probe_heads.items()},
            },
            {"tokens": ("snapshot", one.probe_tokens)},
        )
        for k, one in enumerate(recorded)
    }
    bare = [
        replace(one, probe_tokens=np.zeros(0), probe_icl=np.zeros(0), probe_loss=None, probe_heads={})
        for one in recorded
    ]
    monkeypatch.setattr(module, "recorded_of_members", lambda _run: bare)
    monkeypatch.setattr(module.laws, "fit_p_value", lambda *_args, **_kwargs: 1.0)
    found = over_members(run, analyses)
    for name in ("start", "end", "icl", "previous_token", "predictor_rho"):
        np.testing.assert_array_equal(found[name].values, expected[name].values)
    with pytest.raises(UserError, match="has neither probes nor the ICL score"):
        over_members(run, {})


def test_too_few_to_tell(tmp_path: Path) -> None:
    """Three members: a curve of survival, no law; none that changed: neither."""
    found = over_members(made_members(tmp_path / "few", np.array([0.3, 0.5, np.inf]) * TOKENS, snapshots=(0,)), {})
    assert found["start_survival_share"].values.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert np.isnan(found["law_aic"].values).all()
    assert members_table(found)
    none = over_members(made_members(tmp_path / "none", np.full(2, np.inf), snapshots=(0,)), {})
    assert none["status"].values.tolist() == ["none", "none"]
    assert "start_quantiles" not in none
    assert members_table(none)
    with pytest.raises(UserError, match="has no members"):
        over_members(random_run(tmp_path / "one", made_members.__globals__["MODEL"], (0, 1)), {})


def test_a_change_at_the_first_probe_has_a_time() -> None:
    dataset = xr.Dataset(
        {
            "start": ("member", [0.0, 50.0, np.nan, np.nan]),
            "last_tokens": ("member", [100.0, 100.0, 100.0, np.nan]),
            "probe_tokens": ("probe", [0, 10, 20]),
        }
    )
    times, is_seen = times_of(dataset, "start")
    assert times.tolist() == [5, 50, 100]
    assert is_seen.tolist() == [True, True, False]
