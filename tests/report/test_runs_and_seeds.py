"""Runs of a report, alone and as seeds of one config: names, means, intervals, numbers for people."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from icl_jax.report.behaviours import behaviours
from icl_jax.report.chart import Gap
from icl_jax.report.figures import icl_comparison
from icl_jax.report.reported_run import millions, open_runs, share, signed
from icl_jax.report.seeds import group_by_config, interval
from icl_jax.report.verdicts import (
    co_perturbation,
)
from tests.model.random_params import random_params
from tests.report.made_runs import icl_step, labelled_run, plain_run, small_model, with_config


def test_runs_that_differ_in_seeds_alone_are_one_curve(tmp_path: Path) -> None:
    runs = [labelled_run(tmp_path / name, seed, 0.5) for name, seed in (("a", 0), ("b", 1), ("c", 2))]
    other = plain_run(tmp_path / "other", forms=False, model=small_model(1))
    groups = group_by_config([runs[0], other, *runs[1:]])
    assert [group.name for group in groups] == ["a (3 seeds)", "other"]
    tokens, mean, low, high = groups[0].mean_curve("icl_windowed")
    np.testing.assert_array_equal(tokens, np.arange(0, 101, 10) * 1000)
    np.testing.assert_allclose(mean, icl_step(0, -1))
    assert low is not None
    np.testing.assert_allclose(low, high)  # three equal seeds
    assert groups[1].mean_curve("icl_windowed")[2:] == (None, None)
    labels = [s.label for s in icl_comparison.FIGURE.panels([*runs, other])[0].chart.series if s.in_legend]
    assert labels == ["a (3 seeds)", "other"]


FREE = {
    "train": {"flush_every_s": 60.0, "parallel": "mesh", "fsdp": 2},
    "snapshots": {"state_every_s": 1.0, "keep_states": 5},
    "tracker": {"wandb": "offline", "group": "g", "every_steps": 3},
    "launch": {"topology": "v5e:4x4"},
}


@pytest.mark.parametrize("section", FREE)
def test_what_changes_no_number_parts_no_runs(section: str, tmp_path: Path) -> None:
    one = plain_run(tmp_path / "one", forms=False, model=small_model(1))
    other = with_config(
        with_config(plain_run(tmp_path / "other", forms=False, model=small_model(1)), "train", seed=1),
        section,
        **FREE[section],
    )
    assert [group.name for group in group_by_config([one, other])] == ["one (2 seeds)"]
    smeared = plain_run(tmp_path / "smeared", forms=True, model=small_model(1, smeared_keys=True))
    assert co_perturbation([smeared, other])[0] == "supported"


def test_interval_is_students() -> None:
    mean, half = interval(np.array([1.0, 2.0, 4.0]))
    # Mean 7/3, standard deviation sqrt(7/3), t of two degrees of freedom 4.3027.
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.3027 * np.sqrt(7 / 3) / np.sqrt(3), rel=1e-4)
    assert interval(np.array([1.0]))[1] is None


def test_names_differ_where_folders_have_the_same(tmp_path: Path) -> None:
    for name in ("x/run", "y/run", "z"):
        plain_run(tmp_path / name, forms=False, model=small_model(1))
    paths = [str(tmp_path / name) for name in ("x/run", "y/run", "z")]
    assert [run.name for run in open_runs(paths)] == ["x/run", "y/run", "z"]


def test_a_run_that_is_named_twice_is_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plain_run(tmp_path / "run", forms=False, model=small_model(1)).run
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run.save_snapshot(10, random_params(small_model(1)))
    paths = [str(tmp_path / name) for name in ("copy", "run", "copy")]
    (found,) = open_runs(paths)
    assert (found.name, found.also) == ("run", (paths[0],))
    assert f"; the same run as in {paths[0]}" in found.details
    (group,) = group_by_config([found])
    assert group.name == "run"
    # Where it stands, a run has a name too.
    monkeypatch.chdir(tmp_path / "run")
    assert [(run.name, run.also) for run in open_runs([".", "."])] == [("run", ())]


def test_the_mean_of_seeds_ends_with_the_shortest(tmp_path: Path) -> None:
    long, short = (labelled_run(tmp_path / name, seed, 0.5) for name, seed in (("long", 0), ("short", 1)))
    vars(short)["data"] = short.data.isel(snapshot=slice(0, 7), selected=slice(0, 7))
    long.data["label_prob"][7:] = 0.9
    for runs in ([long, short], [short, long]):
        (group,) = group_by_config(runs)
        tokens, mean, low, _ = group.mean_curve("icl_windowed")
        np.testing.assert_array_equal(tokens, np.arange(0, 61, 10) * 1000)
        assert len(mean) == len(tokens)
        assert low is not None
        # At the end: where both were, not at 100 of one and at 60 of the other.
        (row,) = behaviours(runs)
        assert row.after.prob == pytest.approx(0.5)


def test_numbers_for_people() -> None:
    assert [millions(n) for n in (0, 380_000, 12_300_000, 3.1e9)] == ["0 M", "0.38 M", "12.3 M", "3.1 B"]
    assert [signed(-0.4), signed(2.04, 1), share(-0.126)] == ["−0.40", "+2.0", "−0.13"]


def test_reasons_of_what_is_absent(tmp_path: Path) -> None:
    run = plain_run(tmp_path / "run", forms=True, model=small_model())
    assert run.gap("icl_windowed", "prefix_matching") is None
    assert run.gap("icl_windowed", "smear_own") == Gap("keys are not smeared")
    gap = run.gap("qk_trace")
    assert gap is not None
    assert gap.why == "qk_trace is not in this analysis; icl-jax analyze RUN takes it"
