"""A suite from its file to its report, in processes of its own."""

import signal
import threading
import time
from pathlib import Path

import pytest
import xarray as xr
from rich.console import Console

from icl_jax.config import load_config
from icl_jax.rundir import RunDir
from icl_jax.suites import jobs
from icl_jax.suites.jobs import Job, Slot, Stopped, device_slots, run_jobs
from tests.train.runs import TINY, command, finish, start_cli
from tests.waiting import wait_for, wait_until

SUITE = """
[analysis]
snapshots = 3
[[member]]
config = "tiny.toml"
title = "narrow"
[[member]]
config = "tiny.toml"
name = "wide"
title = "wide"
set = { model = { d_model = 24 } }
"""


# Without layers there is little to analyze, and nothing that takes long to compile.
BIGRAM = TINY.replace("n_layers = 2", "n_layers = 0")


def _write(folder: Path, suite: str = SUITE, config: str = BIGRAM) -> Path:
    (folder / "tiny.toml").write_text(config)
    (folder / "suite.toml").write_text(suite)
    return folder / "suite.toml"


def test_a_suite_is_trained_analyzed_and_reported_and_then_only_looked_at(tmp_path: Path) -> None:
    suite, out = _write(tmp_path), tmp_path / "out"
    status, said, err = command("reproduce", suite, "--out", out)
    assert (status, err) == (0, "")
    assert "narrow" in said
    assert "wide" in said
    assert f"the report: {out}/report/index.html" in said
    for name in (
        "phase_change.png",
        "report/index.html",
        "report/behaviours.csv",
        "logs/tiny.log",
        "configs/wide.toml",
    ):
        assert (out / name).stat().st_size > 100, name
    found = xr.open_zarr(out / "tiny" / "analysis.zarr")
    assert found.sizes["snapshot"] == 3
    assert RunDir.open(str(out / "wide")).config.model.d_model == 24
    header, *rows = (out / "report" / "behaviours.csv").read_text().splitlines()
    assert header.startswith("model,behaviour,when,probability")
    assert {row.split(",")[0] for row in rows} == {"narrow", "wide"}

    steps = {name: RunDir.open(str(out / name)).environment["starts"] for name in ("tiny", "wide")}
    assert command("reproduce", suite, "--out", out)[0] == 0
    assert {name: RunDir.open(str(out / name)).environment["starts"] for name in steps} == steps


def test_few_measurements_and_few_probes_leave_out_what_needs_them_and_say_so_before_training(tmp_path: Path) -> None:
    few = "snapshots = 3\nonly = ['labelled_tokens', 'head_scores']"
    suite = _write(tmp_path, SUITE.replace("snapshots = 3", few), BIGRAM.replace("n_probes = 4", "n_probes = 1"))
    out = tmp_path / "out"
    status, said, err = command("reproduce", suite, "--out", out)
    assert (status, err) == (0, "")
    first = said.splitlines()[0]
    assert first.startswith("tiny, wide: analysis.only leaves out of the report: ")
    assert "ICL score (nats)" in first
    assert "phase_change" in first
    assert "not measured" in said
    assert not (out / "phase_change.png").exists()
    assert (out / "report" / "index.html").exists()


def test_a_measurement_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    suite = _write(tmp_path, SUITE.replace("snapshots = 3", "only = ['icl', 'head_score']"))
    status, said, err = command("reproduce", suite, "--out", tmp_path / "out")
    assert (status, said) == (2, "")
    assert err.startswith("icl-jax: suite: tiny: analysis.only = 'head_score': no such measurement; there are ")
    assert not (tmp_path / "out").exists()


def test_the_runs_of_a_suite_are_one_wandb_group_and_the_longest_start_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = "seeds = [3, 4]" + SUITE.replace("d_model = 24 }", "d_model = 24 }, tracker = { group = 'mine' }")
    jobs: list[Job] = []

    def run_jobs(todo: list[Job], *_: object) -> dict[str, str]:
        jobs.extend(todo)
        return {"tiny-seed3": "not now"}

    monkeypatch.setattr("icl_jax.suites.run_suite.run_jobs", run_jobs)
    assert command("reproduce", _write(tmp_path, suite), "--out", tmp_path / "out")[0] == 2
    assert [job.name for job in jobs] == ["wide-seed3", "wide-seed4", "tiny-seed3", "tiny-seed4"]  # the longest first
    written = {p.stem: load_config(p) for p in (tmp_path / "out" / "configs").iterdir()}
    assert {name: (c.tracker.group, c.tracker.job_type, c.train.seed) for name, c in written.items()} == {
        "tiny-seed3": ("suite", "tiny", 3),
        "tiny-seed4": ("suite", "tiny", 4),
        "wide-seed3": ("mine", "wide", 3),
        "wide-seed4": ("mine", "wide", 4),
    }


def test_a_run_that_fails_is_named_and_the_others_end(tmp_path: Path) -> None:
    suite, out = _write(tmp_path), tmp_path / "out"
    (out / "tiny").mkdir(parents=True)
    (out / "tiny" / "thesis.tex").write_text("years of work")
    status, _, err = command("reproduce", suite, "--out", out)
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "holds 'thesis.tex'" in err
    assert f"{out}/logs/tiny.log" in err
    assert (out / "wide" / "analysis.zarr").exists()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_every_run_and_the_same_command_goes_on(tmp_path: Path, signum: signal.Signals) -> None:
    long = BIGRAM.replace("n_steps = 8", "n_steps = 1000000").replace("n_linear = 8", "n_linear = 0")
    suite, out = _write(tmp_path, config=long), tmp_path / "out"
    child = start_cli("reproduce", suite, "--out", out)
    logs = [out / "logs" / f"{name}.log" for name in ("tiny", "wide")]
    wait_until(lambda: all(log.exists() and "\nstep " in log.read_text() for log in logs), child)
    child.send_signal(signum)
    status, said, _ = finish(child)
    assert status == (130 if signum == signal.SIGINT else 0)
    assert f"{signum.name}: states are saved" in said
    for name in ("tiny", "wide"):
        assert (RunDir.open(str(out / name)).last_state_step() or 0) > 0


def test_each_gpu_is_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert [slot.environment for slot in device_slots(2)] == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("2", "5")]
    assert len(device_slots(9)) == 3
    assert len(device_slots(9, n_slots=1)) == 1


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2, 3, 4})
    assert [slot.cores for slot in device_slots(2)] == [{0, 1}, {2, 3, 4}]
    assert [slot.cores for slot in device_slots(9)] == [{0}, {1}, {2}, {3}, {4}]
    assert [slot.cores for slot in device_slots(9, n_slots=1)] == [{0, 1, 2, 3, 4}]


def test_never_more_jobs_at_a_time_than_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, two_at_once = [0], [0], threading.Event()

    def run(_self: object, command: list[str], slot: Slot, *_: object) -> tuple[int, str]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        if running[0] == 2:
            two_at_once.set()
        wait_for(two_at_once)
        time.sleep(0.02)  # for a third, if there could be one
        running[0] -= 1
        return (1, "it broke") if command == ["bad"] else (0, "")

    monkeypatch.setattr(jobs._Children, "run", run)
    todo = [Job(str(i), [["good"], ["good"]]) for i in range(5)] + [Job("bad", [["bad"], ["never"]])]
    failed = run_jobs(todo, [Slot(), Slot()], tmp_path, Console(quiet=True))
    assert failed == {"bad": "it broke"}
    assert most == [2]


def test_jobs_that_a_signal_ends_do_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: jobs._Children, *_: object) -> tuple[int, str]:
        self.signum = signal.SIGTERM
        return 0, ""

    monkeypatch.setattr(jobs._Children, "run", run)
    with pytest.raises(Stopped) as caught:
        run_jobs([Job("a", [["x"]])], [Slot()], tmp_path, Console(quiet=True))
    assert caught.value.args == (signal.SIGTERM,)


def test_an_unknown_suite_is_one_line() -> None:
    status, _, err = command("reproduce", "quik")
    assert status == 2
    assert "quik: no such suite; there are" in err
    assert "quick" in err
    assert command("reproduce", "quick", "--jobs", "-1")[0] == 2
