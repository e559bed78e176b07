"""A sweep from W&B's file to its table; W&B's own scheduler as far as it goes without its server."""

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from icl_jax.config import UserError, load_config
from icl_jax.rundir import RunDir
from icl_jax.suites import run_suite, run_sweep
from icl_jax.suites.jobs import Job
from icl_jax.suites.sweep_file import load_sweep
from icl_jax.suites.together import together
from tests.train.runs import TINY, command, train_here

pytestmark = pytest.mark.usefixtures("wandb_of_nobody")
GRID = """
method: grid
parameters:
  model.smeared_keys: {values: [true, false]}
  optimizer.lr: {values: [1e-3, 0.003]}
  train.n_steps: {value: 4}
"""
RANDOM = """
method: random
parameters:
  model.n_heads: {values: [1, 2, 3]}
  optimizer.lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}
  optimizer.b2: {min: 0.9, max: 0.99}
"""


def write(folder: Path, text: str = GRID, config: str = TINY) -> tuple[Path, Path]:
    (folder / "tiny.toml").write_text(config)
    (folder / "lr.yaml").write_text(text)
    return folder / "lr.yaml", folder / "tiny.toml"


def test_a_grid_is_trained_tabulated_and_then_only_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TINY.replace("n_layers = 2", "n_layers = 0").replace("smeared_keys = true\n", "")
    path, base = write(tmp_path, GRID.replace("  model.smeared_keys: {values: [true, false]}\n", ""), config)
    out = tmp_path / "out"
    calls: list[list[str]] = []

    def run_jobs(jobs: Sequence[Job], *_: Any) -> dict[str, str]:
        calls.append([job.name for job in jobs])
        for job in jobs[: 1 if len(calls) == 1 else None]:  # the second fails at first
            ((verb, toml, option, run),) = job.commands
            assert (verb, option) == ("train", "--run")
            train_here(load_config(toml), Path(run))
        return {jobs[-1].name: "icl-jax: the loss is not finite"} if len(calls) == 1 else {}

    monkeypatch.setattr(run_suite, "run_jobs", run_jobs)
    status, said, err = command("sweep", path, base, "--out", out, "--apart")
    names = ["optimizer.lr=0.001", "optimizer.lr=0.003"]
    assert calls == [names]
    assert (status, err.splitlines()) == (
        2,
        [f"icl-jax: {out / names[1]}: the loss is not finite; see {out / 'logs' / names[1]}.log"],
    )
    assert "heads form at" in said
    run = RunDir.open(str(out / names[0]))
    assert (run.config.optimizer.lr, run.config.train.n_steps) == (0.001, 4)
    assert run.config.tracker.group == "lr"
    header, *rows = csv.reader((out / "sweep.csv").read_text().splitlines())
    assert header == ["optimizer.lr", "final loss", "ICL score", "phase change", "heads form at", "run"]
    record = run.load_record()
    loss, icl = float(record.loss[-1].mean()), float(record.icl_windowed[-1])
    assert rows[0] == [
        "0.001",
        f"{loss:.3f}",
        f"{icl:.3f}",
        "too few points",
        "never",
        str(out / names[0]),
    ]
    assert rows[1] == ["0.003", "not finished", "", "", "", str(out / names[1])]

    assert command("sweep", path, base, "--out", out, "--apart")[0] == 0
    assert calls[1:] == [names[1:]]
    status, said, _ = command("sweep", path, base, "--out", out, "--apart")
    assert (status, len(calls)) == (0, 2)
    assert "2 runs, 2 of them finished" in said


def test_a_grid_as_members_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TINY.replace("n_layers = 2", "n_layers = 0").replace("smeared_keys = true\n", "")
    smeared = "  model.smeared_keys: {values: [true, false]}\n"
    path, base = write(tmp_path, GRID.replace(smeared, "  train.seed: {values: [0, 3]}\n"), config)
    out = tmp_path / "out"
    calls: list[str] = []

    def run_jobs(jobs: Sequence[Job], *_: Any) -> dict[str, str]:
        for job in jobs:
            calls.append(job.name)
            ((_, toml, _, run),) = job.commands
            train_here(load_config(toml), Path(run), n_devices=2)
        return {}

    monkeypatch.setattr(run_suite, "run_jobs", run_jobs)
    status, said, err = command("sweep", path, base, "--out", out)
    assert (status, err) == (0, "")
    (name,) = calls
    assert "1 runs, 0 of them finished" in said
    _, *rows = csv.reader((out / "sweep.csv").read_text().splitlines())
    assert {tuple(row[:2]) for row in rows} == {(seed, lr) for seed in ("0", "3") for lr in ("0.001", "0.003")}
    assert [row[-1] for row in rows] == [str(out / name / "members" / str(k)) for k in range(4)]
    for row in rows:
        member = RunDir.open(row[-1])
        assert [str(member.config.train.seed), str(member.config.optimizer.lr)] == row[:2]
        assert row[2] == f"{float(member.load_record().loss[-1].mean()):.3f}"
    assert command("sweep", path, base, "--out", out)[0] == 0
    assert calls == [name]
    # More values: what is there stays, as one run or apart, and the others are another run.
    path.write_text(path.read_text().replace("[0, 3]", "[0, 3, 4, 5]"))
    assert command("sweep", path, base, "--out", out)[0] == 0
    assert [RunDir.open(str(out / one)).config.member_fields["train.seed"] for one in calls] == [
        (0, 3, 0, 3), (4, 5, 4, 5),
    ]  # fmt: skip
    assert len((out / "sweep.csv").read_text().splitlines()) == 9
    path.write_text(path.read_text().replace("[0, 3, 4, 5]", "[0, 6]"))
    assert command("sweep", path, base, "--out", out, "--apart")[0] == 0
    assert sorted(calls[2:]) == [f"train.seed={seed},optimizer.lr={lr}" for seed in (0, 6) for lr in ("0.001", "0.003")]


def test_wandb_offline_has_a_run_of_each(tmp_path: Path) -> None:
    smeared = "  model.smeared_keys: {values: [true, false]}\n"
    for wandb_mode, said in (("offline", "2 runs"), ("disabled", "1 runs")):
        path, base = write(tmp_path, GRID.replace(smeared, ""), TINY.replace('"disabled"', f'"{wandb_mode}"'))
        assert said in command("sweep", path, base, "--out", tmp_path / "out", "--dry-run")[1]


def test_runs_of_other_shapes_are_runs_of_their_own(tmp_path: Path) -> None:
    path, base = write(tmp_path)
    file, config = load_sweep(path), load_config(base)
    runs = {name: file.config(config, values) for name, values in file.members(0).items()}
    found = together(runs)
    assert [len(one.members) for one, _ in found.values()] == [2, 2]
    for whole, names in found.values():
        assert [whole.member(k) for k in range(2)] == [runs[name] for name in names]
    one = dict(list(runs.items())[:1])
    assert together(one) == {name: (config, [name]) for name, config in one.items()}


def test_the_file_seeds_the_draws_and_a_higher_count_only_adds(tmp_path: Path) -> None:
    path, _ = write(tmp_path, RANDOM)
    drawn = load_sweep(path).members(40)
    assert list(load_sweep(path).members(10).items()) == list(drawn.items())[:10]
    assert len(drawn) == 40
    values = list(drawn.values())
    assert {each["model.n_heads"] for each in values} == {1, 2, 3}
    assert all(0.9 <= each["optimizer.b2"] <= 0.99 for each in values)
    lrs = [each["optimizer.lr"] for each in values]
    assert all(1e-4 <= lr <= 1e-2 for lr in lrs)
    assert 8 < sum(lr < 1e-3 for lr in lrs) < 32, "even in the logarithm"
    other, _ = write(tmp_path, RANDOM.replace("0.99", "0.98"))
    assert lrs != [each["optimizer.lr"] for each in load_sweep(other).members(40).values()]


def test_members_are_named_by_what_varies_in_names_that_files_can_have(tmp_path: Path) -> None:
    texts = ", ".join(f"'text:{letter * 300}/*.txt'" for letter in "ab")
    file = load_sweep(write(tmp_path, GRID + f"  data.source: {{values: [{texts}]}}\n")[0])
    values = {"model.smeared_keys": True, "optimizer.lr": 1 / 3, "train.n_steps": 4, "data.source": "text:../x/*.txt"}
    assert file.member_name(values) == "model.smeared_keys=True,optimizer.lr=0.333333,data.source=text_.._x_.txt"
    long = {letter: file.member_name(values | {"data.source": "a" * 300 + letter}) for letter in "ab"}
    assert long["a"] != long["b"]
    assert max(map(len, long.values())) < 200


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, base = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    for option, lines in (
        ("--apart", ["  {}True,{}0.001", "  {}True,{}0.003", "  {}False,{}0.001"]),
        ("--no-apart", ["  2-members-256c39c2", "    {}True,{}0.001", "    {}True,{}0.003", "  {}False,{}0.001"]),
    ):
        status, said, err = command("sweep", path, base, "--dry-run", "--count", "3", option)
        assert (status, err) == (0, "")
        fields = ("model.smeared_keys=", "optimizer.lr=")
        assert said.splitlines()[1:] == [line.format(*fields) if "{" in line else line for line in lines]
    assert not (tmp_path / "runs").exists()


BAD = {
    "bayes": (GRID.replace("grid", "bayes"), "method = 'bayes': needs W&B online"),
    "field": (GRID.replace("model.smeared", "model.smoored"), "unknown field 'model.smoored_keys'"),
    "no values": (GRID.replace("value: 4", "valeu: 4"), "train.n_steps"),
    "value": (GRID.replace("value: 4", "value: 0"), "train.n_steps = 0: must be 1 or more"),
    "interval in a grid": (GRID.replace("values: [1e-3, 0.003]", "min: 0.1, max: 0.2"), "optimizer.lr"),
    "not a table": (GRID.replace("{value: 4}", "4"), "parameters.train.n_steps = 4: must have value"),
    "no count": (RANDOM, "--count is missing"),
    "cap": (RANDOM + "run_cap: many", "run_cap = 'many': must be a whole number"),
    "YAML": ("method: [", "not valid YAML"),
    "no method": (GRID.replace("method: grid", ""), "method = None"),
    "no parameters": ("method: grid", "parameters = None: must be fields"),
    "a list": ("[1, 2]", "must hold W&B's keys"),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path, base = write(tmp_path, text)
    status, _, err = command("sweep", path, base, "--dry-run")
    assert status == 2
    assert len(err.splitlines()) == 1
    assert words in err


def test_without_its_sampler_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sweeps", None)
    path, _ = write(tmp_path)
    with pytest.raises(UserError, match=r'pip install "icl-jax\[sweeps\]"'):
        load_sweep(path).members(0)


def test_online_wandb_schedules_and_its_agent_starts_the_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, base = write(tmp_path, GRID.replace("grid", "bayes"), TINY.replace('"disabled"', '"auto"'))
    out = tmp_path / "out"
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    made: list[dict[str, Any]] = []
    started: list[tuple[str, list[str]]] = []

    def make(spec: dict[str, Any], entity: str | None, project: str | None) -> str:
        assert (entity, project) == (None, "icl_jax")
        made.append(spec)
        return "abcd1234"

    def agent(sweep_id: str, entity: str | None, project: str | None, count: int | None) -> None:
        assert (sweep_id, count) == ("abcd1234", 7)
        args = {"model.smeared_keys": {"value": False}, "optimizer.lr": {"value": 0.002}, "train.n_steps": {"value": 4}}
        (text,) = create_sweep_command_args({"args": args})["args_json"]
        *member, values = made[0]["command"]
        assert values == "${args_json}"
        with monkeypatch.context() as patch:
            patch.setenv("WANDB_RUN_ID", "r1")
            patch.setattr(os, "execv", lambda program, argv: started.append((program, argv)))
            patch.setattr(sys, "argv", ["-c", *member[3:], text])
            exec(member[2], {})

    monkeypatch.setattr(wandb, "sweep", make)
    monkeypatch.setattr(wandb, "agent", agent)
    for _ in range(2):  # the second call goes on with the same sweep
        status, said, err = command("sweep", path, base, "--out", out, "--count", "7")
        assert (status, err) == (0, "")
    assert "wandb agent icl_jax/abcd1234" in said
    assert [spec["method"] for spec in made] == ["bayes"]
    assert made[0]["parameters"]["optimizer.lr"] == {"values": [0.001, 0.003]}
    name = "model.smeared_keys=False,optimizer.lr=0.002,id=r1"
    config = load_config(out / "configs" / f"{name}.toml")
    assert (config.optimizer.lr, config.model.smeared_keys, config.train.n_steps) == (0.002, False, 4)
    program, argv = started[0]
    assert program == argv[0] == sys.executable
    assert argv[2:] == [run_sweep._TRAIN, "train", str(out / "configs" / f"{name}.toml"), "--run", str(out / name)]


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, base = write(tmp_path, GRID, TINY.replace('"disabled"', '"auto"'))
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)

    def no_answer(*_args: object, **_named: object) -> str:
        raise ConnectionError("no answer\nat all")

    monkeypatch.setattr(wandb, "sweep", no_answer)
    status, _, err = command("sweep", path, base, "--out", tmp_path / "out")
    assert (status, err) == (2, f"icl-jax: W&B sweep of {tmp_path / 'out'}: no answer\n")
    assert not (tmp_path / "out" / "wandb-sweep.txt").exists()


def test_a_run_of_another_config_is_not_taken_for_finished(tmp_path: Path) -> None:
    config = load_config(write(tmp_path)[1])
    run = RunDir.create(str(tmp_path / "run"), config, corpus_sha256="0" * 64)
    run.save_state(config.train.n_steps, {"step": np.zeros(3)})
    assert run_sweep._is_finished(tmp_path / "run", config)
    assert not run_sweep._is_finished(tmp_path / "run", replace(config, model=replace(config.model, n_layers=1)))
    assert not run_sweep._is_finished(tmp_path / "none", config)
