"""Interventions in training: when they are on, what the record says, members, resuming; and nothing without any."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from icl_jax.config import Config, MembersConfig, UserError
from icl_jax.config.interventions import FORMED, Intervention, read
from icl_jax.data import open_corpus
from icl_jax.interventions.tap import heads_mask
from icl_jax.report import pictures
from icl_jax.report.chart import Axis, Chart, Stretch
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.page import page_data
from icl_jax.report.reported_run import ReportedRun
from icl_jax.rundir import RunDir
from icl_jax.rundir.split import split
from icl_jax.rundir.verify import problems
from icl_jax.train import loop
from icl_jax.train.branch import open_branch
from icl_jax.train.interventions import NOTHING, Interventions
from icl_jax.train.members import MemberStep
from icl_jax.train.parallel import ParallelStep
from icl_jax.train.start import open_or_create
from icl_jax.train.step import TrainState
from tests.train.runs import assert_same_run, final_state, recorded, tiny_config, train_here

TABLES: list[dict[str, Any]] = [
    {"at": "pattern", "layers": 0, "heads": 0, "pattern": "previous", "from": 2, "until": 5},
    {"at": "W_Q", "what": "freeze", "layers": 1, "heads": 1, "from": "first_induction_head"},
]
FORMS_AT = 5
"""The probe, of those at 0, 2, 5 and 8, that sees the first induction head here."""


def intervening(*tables: dict[str, Any], **sections: Any) -> Config:
    return replace(tiny_config(**sections), intervene=read(list(tables)))


@pytest.fixture(autouse=True, scope="module")
def heads_form(compiled_once: None) -> Iterator[None]:
    """So small a model has no induction head: by what its probes see, one forms at `FORMS_AT`."""
    make = loop.make_probe_fn

    def with_a_head(config: Config, corpus: Any, devices: list[jax.Device]) -> Any:
        probe = make(config, corpus, devices)

        def probed(step: int, params: Any) -> Any:
            result = probe(step, params)
            score = np.zeros_like(result.prefix_matching)
            score[..., 1, 2] = 0.7 * (step >= FORMS_AT)
            return replace(result, prefix_matching=score)

        return probed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_probe_fn", with_a_head)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intervened") / "run"
    assert train_here(intervening(*TABLES), path).step == 8
    return path


def test_the_record_says_what_was_on(unbroken: Path) -> None:
    run = RunDir.open(str(unbroken))
    on = run.load_record()["intervened"].values
    assert on.T.tolist() == [[0, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert list(problems(run)) == []
    run.open_record()._array("intervened")[3] = [0, 0]
    assert [line.partition(": ")[2] for line in problems(run)] == [
        "intervened at step 3 is not what the config says (1 such steps)"
    ]
    run.open_record()._array("intervened")[3] = [1, 0]


def test_the_report_shades_what_was_on(unbroken: Path) -> None:
    run = ReportedRun(RunDir.open(str(unbroken)), "run")
    per_step = 8 * 17
    assert run.intervened == (
        Stretch(2 * per_step, 5 * per_step, "pattern previous at pattern layer 0 head 0 from 2 until 5"),
        Stretch(5 * per_step, 8 * per_step, "freeze at W_Q layer 1 head 1 from first_induction_head"),
    )
    captions = dict.fromkeys(("name", "title", "shows", "look_for", "paper"), "")
    figure = RunFigure(**captions, needs=(), chart=lambda _run: Chart(x=TOKENS, y=Axis(label="")))
    (panel,) = figure.panels([run])
    assert isinstance(panel.chart, Chart)
    axes = Figure().subplots()
    pictures._draw_chart(axes, panel.chart)
    assert [text.get_text() for text in axes.texts] == [stretch.what for stretch in run.intervened]
    assert page_data._chart(panel.chart, page_data.ArrayStore())["intervened"][1]["start"] == 5 * per_step


def test_what_is_frozen_stays_and_the_rest_learns(unbroken: Path) -> None:
    run = RunDir.open(str(unbroken))
    before, after = (run.load_params(step)["W_Q"] for step in (FORMS_AT, 8))
    assert np.array_equal(before[1, 1], after[1, 1])
    assert (before[1, 0] != after[1, 0]).any()
    moments = final_state(unbroken)["opt_state.0.mu.W_Q"]
    assert (moments[1, 0] != 0).any()


@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_resumed_before_inside_and_after(unbroken: Path, tmp_path: Path, stop_at: int) -> None:
    train_here(intervening(*TABLES), tmp_path / "run", stop_at=stop_at)
    train_here(intervening(*TABLES), tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken)


def test_each_member_has_its_own_head(unbroken: Path, tmp_path: Path) -> None:
    """On a CPU by one program; the numbers are those of the run alone, but for rounding."""
    members = MembersConfig(values="intervene.0.heads=2,0,1")
    config = replace(intervening(*TABLES), members=members)
    train_here(config, tmp_path / "run", n_devices=2)
    run = RunDir.open(str(tmp_path / "run"))
    assert list(problems(run)) == []
    record = run.load_record()
    assert record["intervened"].dims == ("step", "member", "intervention")
    assert record["intervene.0.heads"].values.tolist() == [2, 0, 1]
    assert len({loss.tobytes() for loss in record["loss"].values[-1]}) == 3
    made = split(run.member(1), str(tmp_path / "split"))
    assert made.config == intervening(*TABLES)
    assert list(problems(made)) == []
    found, expected = recorded(tmp_path / "split"), recorded(unbroken)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def test_members_share_a_program_for_what_is_on(tmp_path: Path) -> None:
    config = replace(intervening(*TABLES), members=MembersConfig(values="intervene.0.heads=2,0"))
    step, interventions = MemberStep(config, jax.devices()[:1]), Interventions(config, _empty_record(config, tmp_path))
    for at in (2, 3, 4):
        step.under(interventions.at(at), interventions)
    assert len(step._programs) == 1
    assert interventions.at(3) is interventions.at(4)


def _empty_record(config: Config, path: Path) -> Any:
    return open_or_create(str(path / "empty"), config, open_corpus(config)).load_record()


@pytest.mark.parametrize("table", [{"at": "z", "what": "mean"}, {"at": "z", "noise": 0.3}], ids=["mean", "noise"])
def test_devices_change_no_number(tmp_path: Path, table: dict[str, Any]) -> None:
    """Nor does a device's share of the rows: the mean is of all rows, noise is of the row."""
    config = intervening(table)
    rows = open_corpus(config).rows(np.arange(8))
    found = []
    for n_devices, parallel_form in ((1, "pmap"), (2, "pmap"), (4, "mesh")):
        one = replace(config, train=replace(config.train, parallel=parallel_form))
        step, interventions = (
            ParallelStep(one, jax.devices()[:n_devices]),
            Interventions(one, _empty_record(one, tmp_path)),
        )
        run = step.under(interventions.at(0), interventions)
        state, metrics = run(step.init_state(), step.put_rows(rows))
        found.append((np.asarray(metrics.loss_T), np.asarray(state.params["W_V"])))
    for loss, W_V in found[1:]:
        np.testing.assert_allclose(loss, found[0][0], atol=2e-6)
        np.testing.assert_allclose(W_V, found[0][1], atol=2e-6)


def test_without_any_that_is_on_the_program_is_the_same() -> None:
    plain, later = tiny_config(), intervening({"at": "z", "what": "zero", "from": 5})
    text, other = (ParallelStep(config, jax.devices()[:1]).lower().as_text() for config in (plain, later))
    assert text == other
    assert ParallelStep(later, jax.devices()[:1]).under(NOTHING).__name__ == "train_step"  # type: ignore[attr-defined]


def test_heads_that_formed() -> None:
    model = tiny_config().model
    one = Intervention(what="zero", at="result", heads=FORMED, since="first_induction_head")
    formed = np.zeros((2, 3), bool)
    formed[1, 2] = True
    assert heads_mask(one, model, formed).tolist() == formed.tolist()
    assert not heads_mask(one, model).any()
    rest = Intervention(what="zero", at="result", layers=(1,), except_heads=(2,))
    assert heads_mask(rest, model).tolist() == [[False] * 3, [True, True, False]]


def test_a_branch_begins_to_intervene(tmp_path: Path) -> None:
    plain = tiny_config(snapshots={"state_every_s": 1e-9, "keep_states": 9})
    train_here(plain, tmp_path / "parent")
    branch = open_branch(str(tmp_path / "parent"), 4)
    config = replace(plain, intervene=read([{"at": "result", "what": "zero", "layers": 1}]))
    branch.check(config)
    run = open_or_create(str(tmp_path / "branch"), config, open_corpus(config), branch)
    assert run.last_state_step() == 4
    train_here(config, tmp_path / "branch")
    found, parent = (RunDir.open(str(tmp_path / name)) for name in ("branch", "parent"))
    assert found.load_record()["intervened"].values[:, 0].tolist() == [0] * 4 + [1] * 4
    assert list(problems(found)) == []
    ours, theirs = (run.load_record()["loss"].values for run in (found, parent))
    assert np.array_equal(ours[:4], theirs[:4])
    assert (ours[4] != theirs[4]).all()
    changed = json.loads((tmp_path / "branch" / "environment.json").read_text())["branch"]["changed_fields"]
    assert changed == {"intervene": [[], [{"what": "zero", "at": "result", "layers": [1]}]]}


def test_a_donor_must_fit(unbroken: Path) -> None:
    def refused(**table: Any) -> str:
        config = intervening({"at": "pattern", "from_run": str(unbroken), "step": 8, **table}, model={"n_ctx": 19})
        with pytest.raises(UserError) as caught:
            Interventions(config, RunDir.open(str(unbroken)).load_record())
        return str(caught.value).partition("': ")[2]

    assert refused() == "has model.n_ctx = 17: must be 19 or more"
    assert refused(at="W_K", from_layer=2) == "has 2 layers: there is no layer 2"
    assert refused(at="W_K", from_head=3) == "has 3 heads: there is no head 3"
    assert refused(at="W_K", from_run=str(unbroken), step=99).startswith("")


def test_state_has_the_shapes_that_it_had(unbroken: Path) -> None:
    state = TrainState(np.int32(0), {}, ())  # an intervention adds nothing to what is saved
    assert set(state._fields) == {"step", "params", "opt_state"}
    assert not any("interven" in name for name in final_state(unbroken))
