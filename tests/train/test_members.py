"""A member of many has the bits of the run alone; nothing that becomes of another changes them."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import icl_jax
from icl_jax.analysis.run_measurements import analyze, analyze_members
from icl_jax.config import MembersConfig, NonFiniteLossError, UserError
from icl_jax.rundir import RunDir, snapshots
from icl_jax.rundir.record import Record
from icl_jax.rundir.split import split
from icl_jax.rundir.verify import problems
from icl_jax.train import failures
from icl_jax.train.members import MemberStep
from tests.train.runs import assert_same_run, command, four, only_line, train_here

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seed 7 by itself, on one device."""
    path = tmp_path_factory.mktemp("alone") / "run"
    assert train_here(four().member(3), path).step == 8
    return path


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("together") / "run"
    assert train_here(four(), path, n_devices=2).step == 8
    return path


def assert_same_members(path: Path, expected: Path) -> None:
    assert_same_run(path, expected)
    assert RunDir.open(str(path)).config.members == RunDir.open(str(expected)).config.members


def test_a_member_is_the_run_alone(together: Path, alone: Path, tmp_path: Path) -> None:
    run, expected = RunDir.open(str(together)).member(3), RunDir.open(str(alone))
    assert run.config == expected.config
    assert run.manifest.read() == expected.manifest.read()
    assert list(problems(run)) == list(problems(RunDir.open(str(together)))) == []
    for step in (0, 8):
        params, alone_params = run.load_params(step), expected.load_params(step)
        assert all(np.array_equal(params[name], value) for name, value in alone_params.items())
    made = split(run, str(tmp_path / "split"))
    assert_same_run(tmp_path / "split", alone)
    assert made.read_tokenizer() == expected.read_tokenizer()
    assert (tmp_path / "split" / "config.toml").read_bytes() == (alone / "config.toml").read_bytes()
    # Clipping has been at work, or its bits would not have been compared.
    assert (expected.load_record()["grad_norm"].values > run.config.optimizer.clip_norm).any()


def test_members_differ(together: Path) -> None:
    loss = RunDir.open(str(together)).load_record()["loss"].values
    assert loss.shape == (8, 4, 17)
    assert len({one.tobytes() for one in loss[-1]}) == 4


def test_members_that_train_on_the_end_of_rows_stopped_and_resumed(tmp_path: Path) -> None:
    config = four(train={"loss_from": 11})
    assert train_here(config, tmp_path / "many", stop_at=3).step == 3
    assert train_here(config, tmp_path / "many").step == 8
    train_here(config.member(3), tmp_path / "alone")
    split(RunDir.open(str(tmp_path / "many")).member(3), str(tmp_path / "split"))
    assert_same_run(tmp_path / "split", tmp_path / "alone")
    assert np.isfinite(RunDir.open(str(tmp_path / "alone")).load_record()["loss"].values).all()


@pytest.mark.parametrize("n_devices", [1, 4])
def test_devices_change_no_bit(together: Path, tmp_path: Path, n_devices: int) -> None:
    train_here(four(), tmp_path / "run", n_devices=n_devices)
    assert_same_members(tmp_path / "run", together)


@pytest.mark.parametrize("stop_at", [0, 3, 8])
def test_stopped_and_resumed(together: Path, tmp_path: Path, stop_at: int) -> None:
    run = tmp_path / "run"
    train_here(four(), run, n_devices=2, stop_at=stop_at)
    train_here(four(), run, n_devices=4)
    assert_same_members(run, together)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(snapshots, "save_arrays", 3), (Record, "write_steps", 5), (Record, "write_probe", 2)],
    ids=["save_arrays", "steps", "probe"],
)
def test_killed_and_resumed(together: Path, tmp_path: Path, owner: Any, name: str, call: int) -> None:
    n_calls = 0
    original = getattr(owner, name)

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls == call:
            raise RuntimeError("killed")
        return original(*args, **kwargs)

    config = four(snapshots={"state_every_s": 1e-9, "keep_states": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, killing)
        with pytest.raises(UserError, match="killed"):
            train_here(config, tmp_path / "run", n_devices=2)
    train_here(config, tmp_path / "run", n_devices=2)
    assert_same_members(tmp_path / "run", together)


def test_members_need_not_divide_among_devices(alone: Path, tmp_path: Path) -> None:
    config = replace(four(), members=MembersConfig(seeds="4,1,7"))
    train_here(config, tmp_path / "run", n_devices=2, stop_at=5)
    train_here(config, tmp_path / "run", n_devices=2)
    run = RunDir.open(str(tmp_path / "run"))
    assert list(problems(run)) == []
    assert run.member(2).manifest.read() == RunDir.open(str(alone)).manifest.read()
    split(run.member(2), str(tmp_path / "split"))
    assert_same_run(tmp_path / "split", alone)


def test_members_that_differ_in_more_than_the_seed(alone: Path, tmp_path: Path) -> None:
    """A learning rate each, on a device of its own: the program of the run alone."""
    config = replace(four(), members=MembersConfig(seeds="7..7", values="optimizer.lr=0.001,0.003"))
    assert config.member(1) == four().member(3)
    train_here(config, tmp_path / "run", n_devices=2, stop_at=5)
    train_here(config, tmp_path / "run", n_devices=2)
    run = RunDir.open(str(tmp_path / "run"))
    assert list(problems(run)) == []
    record = run.load_record()
    assert record["optimizer.lr"].values.tolist() == [0.001, 0.003]
    assert record["lr"].values.max(axis=0) == pytest.approx([0.001, 0.003])
    assert run.member(1).manifest.read() == RunDir.open(str(alone)).manifest.read()
    split(run.member(1), str(tmp_path / "split"))
    assert_same_run(tmp_path / "split", alone)


def test_members_with_rows_of_their_own(tmp_path: Path) -> None:
    """Each is the run alone with its data.seed, resumed on other devices, analyzed and split."""
    values = MembersConfig(seeds="4..4", values="data.seed=3,9223372036854775807,5")
    config = replace(four(), members=values)
    assert config.row_seeds == (3, 2**63 - 1, 5)
    train_here(config, tmp_path / "run", n_devices=2, stop_at=5)
    train_here(config, tmp_path / "run", n_devices=1)
    run = RunDir.open(str(tmp_path / "run"))
    assert list(problems(run)) == []
    assert run.load_record()["data.seed"].values.tolist() == [3, 2**63 - 1, 5]
    only = ["icl", "head_scores"]
    found = {member.index: analysis for member, analysis in analyze_members(run, only=only, snapshots=2)}
    train_here(config.member(1), tmp_path / "alone")
    made, alone = split(run.member(1), str(tmp_path / "split")), RunDir.open(str(tmp_path / "alone"))
    assert_same_run(tmp_path / "split", tmp_path / "alone")
    assert made.corpus_sha256 == alone.corpus_sha256 == run.member(1).corpus_sha256 != run.corpus_sha256
    assert made.load_held_out().sha256 == alone.load_held_out().sha256
    expected = analyze(alone, only=only, snapshots=2)
    for name in ("loss_by_position", "prefix_matching"):
        np.testing.assert_array_equal(found[1][name], expected[name], err_msg=name)
    assert len({one.load_held_out().sha256 for one in run.each()}) == 3


@pytest.mark.parametrize("n_devices", [1, 8])
def test_no_member_waits_for_another(n_devices: int) -> None:
    eight = replace(four(), members=MembersConfig(seeds=8))
    members, alone = (MemberStep(eight, jax.devices()[:n]) for n in (n_devices, 1))
    text, expected = (str(step.lower().compile().as_text()) for step in (members, alone))
    # A sum over the one device that a member is on is no collective: each group has one device.
    assert set(re.findall(r"replica_groups=(\{\{.*?\}\}|\[[^ ,]*,[^ ,]*)", text)) <= {
        "{" + ",".join(f"{{{d}}}" for d in range(n_devices)) + "}",
        f"[{n_devices},1]<=[{n_devices}]",
    }
    assert re.findall("all-gather|all-to-all|reduce-scatter|collective-permute", text) == []
    assert text.count("all-reduce(") == expected.count("all-reduce(") > 0


def _poison(patch: pytest.MonkeyPatch, bad: dict[int, int]) -> None:
    """Let the loss of members be NaN from a step on; what they compute is as ever."""
    judge = failures.Failures.judge

    def judged(self: failures.Failures, step: int, metrics: Any) -> Any:
        loss = np.array(metrics.loss_T)
        for k, first in bad.items():
            loss[k, 5] = np.nan if step == first else loss[k, 5]
        return judge(self, step, metrics._replace(loss_T=loss))

    patch.setattr(failures.Failures, "judge", judged)


def test_a_member_fails_and_the_others_go_on(together: Path, alone: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", four(snapshots={"state_every_s": 1e-9})
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, {1: 4})
        train_here(config, run, n_devices=2, stop_at=6)
    whole = tmp_path / "whole"
    train_here(config, run, n_devices=2)  # not poisoned: that it has failed, the run itself says
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, {1: 4})
        train_here(config, whole, n_devices=2)
    assert_same_members(run, whole)
    failed, good = RunDir.open(str(run)).member(1), RunDir.open(str(run)).member(3)
    assert failed.load_record().sizes["step"] == 4
    assert [entry.step for entry in failed.read_snapshots()] == [0, 1, 2, 3, 4]
    assert list(problems(failed)) == list(problems(RunDir.open(str(run)))) == []
    record = RunDir.open(str(run)).load_record()
    assert np.isfinite(record["loss"].values[:, [0, 2, 3]]).all()
    assert np.isnan(record["loss"].values[5:, 1]).all()
    assert np.isnan(record["loss"].values[4, 1]).tolist() == [t == 5 for t in range(17)]  # why it failed
    assert good.manifest.read() == RunDir.open(str(alone)).manifest.read()
    split(failed, str(tmp_path / "split"))
    assert list(problems(RunDir.open(str(tmp_path / "split")))) == []


def test_no_member_is_left(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _poison(patch, {0: 2, 1: 2, 2: 3, 3: 5})
        with pytest.raises(NonFiniteLossError, match=r"member 3: the loss at position 5 is nan.*no member is left"):
            train_here(four(), tmp_path / "run", n_devices=2)


def test_verify_sees_a_changed_member(together: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(together, run)
    found = RunDir.open(str(run))
    params = found.load_params(8)
    params["W_E"][2, 0, 0] += 1
    shutil.rmtree(run / "snapshots" / "8")
    snapshots.save_arrays(found.path / "snapshots" / "8", params)
    assert any("8: its parameters have changed" in problem for problem in problems(found))
    assert any("8: its parameters have changed" in problem for problem in problems(found.member(2)))
    assert list(problems(found.member(1))) == []


def test_analysis(together: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(together, run)
    status, out, err = command("analyze", run, "--only", "head_scores,phase_change", "--show")
    assert (status, err) == (0, "")
    table = out[out.index("analysis of 4 members") :].splitlines()
    assert re.fullmatch(r"  phase change +\d changed, \d still going on, \d without", table[1])
    assert [line.split()[:2] for line in table[-4:]] == [["member", str(k)] for k in range(4)]
    shutil.copytree(alone, tmp_path / "alone")
    analyze(RunDir.open(str(tmp_path / "alone")), only=["head_scores", "phase_change"])
    found, expected = (icl_jax.open_run(str(path)).analysis.load() for path in (run / "members/3", tmp_path / "alone"))
    assert found.drop_attrs(deep=False).identical(expected.drop_attrs(deep=False))
    assert list(problems(RunDir.open(str(run)))) == []
    (run / "members" / "3" / "analysis.zarr" / "zarr.json").write_text("{")
    assert any("members/3/analysis.zarr" in problem for problem in problems(RunDir.open(str(run))))


def test_a_branch_of_a_member(together: Path, alone: Path, tmp_path: Path) -> None:
    status, out, err = command("branch", together / "members" / "3", "--at", "5", "--run", tmp_path / "branch")
    assert (status, err) == (0, ""), err
    assert "complete, 8 steps" in out
    branch, expected = RunDir.open(str(tmp_path / "branch")).load_record(), RunDir.open(str(alone)).load_record()
    # What it has of before is its parent's; the step after, from the same parameters.
    assert np.array_equal(branch["loss"][:6], expected["loss"][:6])


def test_opened(together: Path) -> None:
    run = icl_jax.open_run(str(together))
    member = run.member(3)
    assert (run.record.sizes["member"], run.params(8)["W_E"].shape[0]) == (4, 4)
    assert np.array_equal(member.params(8)["W_E"], run.params(8)["W_E"][3])
    assert member.path == str(together / "members" / "3")
    assert (member.config.train.seed, bool(member.config.members)) == (7, False)
    assert member.record.equals(icl_jax.open_run(member.path).record)
    with pytest.raises(UserError, match=r"has 4 members: name one, such as .*members/0"):
        run.probe("1 2")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("split", "RUN", "--member", "4", "--run", "NEW"), "member = 4: must be from 0 to 3"),
        (("split", "RUN/members/1", "--member", "0", "--run", "NEW"), "has no members"),
        (("split", "RUN", "--member", "1", "--run", "RUN"), "is a run already"),
        (("export", "RUN", "--to", "transformer-lens"), "has 4 members: name one, such as"),
        (("probe", "RUN", "1 2"), "has 4 members: name one, such as"),
        (("branch", "RUN", "--at", "8", "--run", "NEW"), "has 4 members: name one, such as"),
        (("branch", "RUN/members/1", "--at", "8", "--members.seeds", "2", "--run", "NEW"), "a branch is one run"),
        (("verify", "RUN/members/4"), "member = 4: must be from 0 to 3"),
        (("train", "CONFIG", "--run", "RUN/members/1"), "icl-jax split makes a run of it"),
        (("train", "CONFIG", "--members.seeds", "5", "--run", "RUN"), "members.seeds: '4,1,0,7' != '0..4'"),
        (("train", "CONFIG", "--run", "RUN"), "members.seeds: '4,1,0,7' != ''"),
        (("train", "CONFIG", "--members.seeds", "0", "--run", "NEW"), "members.seeds = '0': must be 1 member or more"),
        (("train", "CONFIG", "--members.seeds", "3,3", "--run", "NEW"), "members.seeds = '3,3': must be how many"),
        (
            (
                "train",
                "CONFIG",
                "--members.seeds",
                "4",
                "--train.parallel",
                "mesh",
                "--train.fsdp",
                "2",
                "--run",
                "NEW",
            ),
            "train.fsdp = 2: must be 1 with members",
        ),
    ],
)
def test_bad_input(together: Path, tmp_path: Path, args: tuple[str, ...], said: str) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text((together / "config.toml").read_text().partition("[members]")[0])
    places = {"RUN": str(together), "NEW": str(tmp_path / "new"), "CONFIG": str(config)}
    given = [re.sub("^(RUN|NEW|CONFIG)", lambda found: places[found[0]], arg) for arg in args]
    status, _, err = command(*given)
    assert status == 2
    assert said in only_line(err)
    assert not (tmp_path / "new").exists()
