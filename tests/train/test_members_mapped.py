"""Members as an accelerator takes them, several at a time in one program: the numbers of the run alone to rounding."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from icl_jax.config import MembersConfig, parse_config
from icl_jax.config.members import VARIED
from icl_jax.maths.finding import find_in_record
from icl_jax.rundir import RunDir
from icl_jax.rundir.record import PROBE_SCALARS
from icl_jax.rundir.verify import problems
from icl_jax.train import loop, probes, recorder
from icl_jax.train import members as members_module
from icl_jax.train.members import MemberStep
from tests.train.runs import four, tiny_config, train_here

pytestmark = pytest.mark.usefixtures("compiled_once")


ALL_VARY = (
    "optimizer.lr=0.01,0.02; optimizer.warmup_steps=1,4; optimizer.final_lr_fraction=0.2,0.5; optimizer.b1=0.5,0.8;"
    "optimizer.b2=0.9,0.7; optimizer.eps=1e-3,1e-4; optimizer.weight_decay=0.1,0.5; optimizer.decay_change_step=-1,2;"
    "optimizer.decay_change_factor=1,7; optimizer.clip_norm=0,0.3; model.init_std=0.05,0.1; data.seed=5,6"
)


def test_numbers_that_differ_are_arguments_of_the_mapped_program(tmp_path: Path) -> None:
    config = replace(tiny_config(), members=MembersConfig(seeds="3,4", values=ALL_VARY, combine="paired"))
    assert set(config.member_fields) == {"train.seed", *VARIED}
    assert config.rows_of_members == (0, 1)
    with pytest.MonkeyPatch.context() as patch:
        _map(patch)
        train_here(config, tmp_path / "members")
    for k in range(2):
        train_here(config.member(k), tmp_path / str(k))
        found, expected = (RunDir.open(str(tmp_path / name)) for name in ("members", str(k)))
        record, alone = found.member(k).load_record(), expected.load_record()
        for name in ("loss", "grad_norm", "lr"):
            np.testing.assert_allclose(record[name], alone[name], rtol=2e-5, atol=1e-5, err_msg=f"{k} {name}")
        params = found.member(k).load_params(8)
        for name, value in expected.load_params(8).items():
            np.testing.assert_allclose(params[name], value, atol=1e-4, err_msg=f"{k} {name}")


def _map(patch: pytest.MonkeyPatch) -> None:
    """Let a CPU take members as an accelerator does: several at a time, in one program, fetched some steps later."""
    for module in (members_module, probes):
        patch.setattr(module, "are_mapped", lambda _platform: True)
    patch.setattr(recorder, "_IN_FLIGHT", {})


CHANGES = """
[model]
n_layers = 1
d_model = 32
n_heads = 2
n_ctx = 32
vocab_size = 24
smeared_keys = true
[data]
held_out_rows = 32
[data.repeats]
phrase_len = 6
phrase_prob = 0.4
[train]
n_steps = 150
batch_size = 16
flush_every_s = 1.0
[optimizer]
lr = 1e-2
warmup_steps = 20
[snapshots]
n_linear = 2
n_log = 0
[probes]
n_probes = 40
held_out_rows = 32
n_sequences = 1
repeat_len = 8
n_repeats = 2
[tracker]
wandb = "disabled"
"""


def test_members_together_on_a_device(tmp_path: Path) -> None:
    """As on an accelerator: in rounds of what memory holds, and the phase change comes where it comes alone."""
    config = replace(parse_config(CHANGES), members=MembersConfig(seeds=3))
    with pytest.MonkeyPatch.context() as patch:
        _map(patch)
        train_here(config, tmp_path / "members", n_devices=1)
    train_here(config.member(2), tmp_path / "alone")
    together, alone = (RunDir.open(str(tmp_path / name)) for name in ("members", "alone"))
    assert list(problems(together)) == []
    found, expected = together.member(2).load_record(), alone.load_record()
    np.testing.assert_allclose(found["loss"][:50], expected["loss"][:50], atol=1e-5)
    np.testing.assert_allclose(found["grad_norm"][:50], expected["grad_norm"][:50], atol=1e-5)
    for name in ("held_out_loss", *PROBE_SCALARS, "prefix_matching", "previous_token"):
        is_early = expected["probe_step"] < 50
        np.testing.assert_allclose(found[name][is_early], expected[name][is_early], atol=1e-5, err_msg=name)
    changes = [find_in_record(record) for record in (found, expected)]
    (mine, its) = (finding.changes[0] for finding in changes if finding is not None)
    assert its.start_interval[0] <= mine.start <= its.start_interval[1]
    assert its.end_interval[0] <= mine.end <= its.end_interval[1]


def _parts(step: MemberStep) -> list[Any]:
    params: Any = step.init_state().params
    return list(params.parts)


def test_members_are_taken_as_memory_holds_them(tmp_path: Path) -> None:
    train_here(four(), tmp_path / "together", n_devices=2)
    with pytest.MonkeyPatch.context() as patch:
        _map(patch)
        needs: list[int] = []
        patch.setattr(members_module, "memory_bytes", lambda _device: 0)
        step = MemberStep(four(), jax.devices()[:1])
        needs.append(step.lower().compile().memory_analysis().temp_size_in_bytes)
        assert len(_parts(step)) == 1
        # What half of them need, and the states of all.
        patch.setattr(members_module, "memory_bytes", lambda _device: needs[0])
        step = MemberStep(four(), jax.devices()[:1])
        assert len(_parts(step)) == 2
        patch.setattr(loop, "MemberStep", lambda *_args: step)
        train_here(four(), tmp_path / "run", stop_at=5)
        train_here(four(), tmp_path / "run")
    found, expected = (RunDir.open(str(tmp_path / name)) for name in ("run", "together"))
    assert list(problems(found)) == []
    for name in ("loss", "grad_norm", "held_out_loss", "prefix_matching"):
        np.testing.assert_allclose(found.load_record()[name], expected.load_record()[name], atol=1e-5, err_msg=name)
    for name, value in expected.load_params(8).items():
        np.testing.assert_allclose(found.load_params(8)[name], value, atol=1e-5, err_msg=name)


def test_members_together_without_layers(tmp_path: Path) -> None:
    config = tiny_config(model={"n_layers": 0, "smeared_keys": False}, train={"n_steps": 3})
    with pytest.MonkeyPatch.context() as patch:
        _map(patch)
        train_here(replace(config, members=MembersConfig(seeds=2)), tmp_path / "run")
    run = RunDir.open(str(tmp_path / "run"))
    assert list(problems(run)) == []
    assert run.load_record()["held_out_loss"].shape == (4, 2, 17)


def test_members_together_lower_for_a_gpu() -> None:
    with pytest.MonkeyPatch.context() as patch:
        _map(patch)
        step = MemberStep(four(), jax.devices()[:1])
    text = step.traced().lower(lowering_platforms=("cuda",)).as_text()
    assert "cross_entropy" in text
