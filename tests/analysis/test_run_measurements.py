import dataclasses
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from icl_jax.analysis import session
from icl_jax.analysis.dataset import asked_of, load_dataset, save_dataset
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import ModelConfig, UserError
from icl_jax.measures import measurement
from icl_jax.measures.measurement import Arrays, Context, Derived, Measurement, StackedParams, Variable
from icl_jax.rundir import HeldOut, RunDir
from tests.analysis.small_runs import make_run, random_rows, random_run
from tests.model.random_params import random_params

MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=17, vocab_size=19)
TOP_OF_A_TEST = 7  # a constant of a module with a measurement
STEPS = (0, 1, 2, 5, 7, 10, 11)


class Killed(BaseException):
    """What a signal is to a program that does not expect it."""


class Sums:
    """A measurement that remembers which snapshots it was taken of, by the sum of their embedding."""

    def __init__(
        self, name: str = "sums", *, on_few: bool = False, version: int = 1, work: float = 0.0, on_request: bool = False
    ) -> None:
        self.seen: list[float] = []
        self.die_after = 10**9
        self.measurement = Measurement(
            name, "nobody", {f"{name}_of": Variable((), "1", "a sum")}, self._measure, on_few=on_few, version=version,
            work=lambda _context: work, on_request=on_request,
        )  # fmt: skip

    def _measure(self, _context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
        sums = params["W_E"].sum(axis=(1, 2), dtype=np.float64)
        self.seen += sums.tolist()
        if len(self.seen) > self.die_after:
            raise Killed
        return {f"{self.measurement.name}_of": sums}


def _sums(run: RunDir, steps=STEPS) -> list[float]:
    return [float(run.load_params(step)["W_E"].sum(dtype=np.float64)) for step in steps]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "run"
    random_run(path, MODEL, STEPS)
    return path


@pytest.fixture
def run(template: Path, tmp_path: Path) -> RunDir:
    shutil.copytree(template, tmp_path / "run")
    return RunDir.open(str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MAX_BATCH", 2)


def test_every_snapshot_is_measured_once(run: RunDir) -> None:
    sums = Sums()
    dataset = analyze(run, table=(sums.measurement,))
    np.testing.assert_array_equal(dataset["sums_of"], _sums(run))
    assert sums.seen == _sums(run)
    again = analyze(run, table=(sums.measurement,))
    assert len(sums.seen) == len(STEPS)
    xr.testing.assert_identical(again, dataset)


def test_what_takes_hours_is_taken_by_name_alone_and_then_kept(run: RunDir) -> None:
    sums, costly = Sums(), Sums("costly", work=3e15)
    table = (sums.measurement, costly.measurement)
    absent = json.loads(analyze(run, table=table).attrs["absent"])
    what = "icl-jax analyze RUN --only costly (--rows: of fewer rows)"
    assert absent == {"costly": f"3.0e15 operations a snapshot are made only where they are asked for: {what}"}
    assert not costly.seen
    assert "costly_of" in analyze(run, table=table, only=["costly"])
    assert {"sums_of", "costly_of"} <= set(analyze(run, table=table))
    assert costly.seen == sums.seen == _sums(run)


def test_what_is_taken_on_request_is_taken_by_name_and_again_where_it_was(run: RunDir) -> None:
    sums, asked = Sums(), Sums("asked", on_request=True)
    table = (sums.measurement, asked.measurement)
    absent = json.loads(analyze(run, table=table).attrs["absent"])
    assert absent == {"asked": "taken only where it is asked for: icl-jax analyze RUN --only asked"}
    assert not asked.seen
    assert {"sums_of", "asked_of"} <= set(analyze(run, table=table, only=["asked"]))
    taken = {
        "set_size": ("x", [1.0], {"measurement": "set_sizes"}),
        "icl_windowed": ("x", [1.0], {"measurement": "icl"}),
    }
    attrs = {"absent": "{}", "held_out_rows": 4}
    assert asked_of(xr.Dataset(taken, attrs=attrs))["only"] == ["set_sizes"]
    assert asked_of(xr.Dataset({"icl_windowed": taken["icl_windowed"]}, attrs=attrs))["only"] is None


def test_what_is_on_disk_opens_without_a_warning_and_is_what_was_returned(run: RunDir) -> None:
    dataset = analyze(run, table=(Sums().measurement,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xr.open_zarr(str(run.path / "analysis.zarr")).load()
    assert opened.attrs.pop("seal").keys() == {"", *opened.variables}
    xr.testing.assert_identical(opened, dataset)
    assert opened["snapshot"].values.tolist() == list(STEPS)
    assert opened["tokens"].values.tolist() == [step * run.config.tokens_per_step for step in STEPS]
    assert opened["sums_of"].attrs["units"] == "1"
    assert opened["sums_of"].attrs["text"] == "a sum"
    assert opened["sums_of"].attrs["source"] == "nobody"


def test_a_killed_analysis_goes_on_where_it_was(run: RunDir) -> None:
    sums, others = Sums(), Sums("others")
    sums.die_after = 4
    with pytest.raises(Killed):
        analyze(run, table=(sums.measurement, others.measurement))
    assert not (run.path / "analysis.zarr").exists()
    n_before = len(sums.seen)
    finished = 4  # the batch in which it died is lost
    sums.die_after = 10**9
    dataset = analyze(run, table=(sums.measurement, others.measurement))
    assert sums.seen[n_before:] == _sums(run)[finished:]
    assert others.seen == _sums(run)
    np.testing.assert_array_equal(dataset["sums_of"], _sums(run))


def test_a_kill_while_the_dataset_is_written_leaves_the_old_one(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, others = Sums(), Sums("others")
    analyze(run, table=(sums.measurement,))

    def die(*_args: object, **_kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", die)
        with pytest.raises(Killed):
            analyze(run, table=(sums.measurement, others.measurement))
    assert "others_of" not in xr.open_zarr(str(run.path / "analysis.zarr"))
    analyze(run, table=(sums.measurement, others.measurement))
    assert others.seen == _sums(run)
    assert {path.name for path in run.path.iterdir() if "analysis" in path.name} == {"analysis.zarr", "analysis_parts"}


def test_a_snapshot_trained_anew_is_measured_anew(run: RunDir) -> None:
    sums = Sums()
    analyze(run, table=(sums.measurement,))
    entries = run.manifest.read()
    run.manifest.write([entry for entry in entries if entry.step < 10])
    for step in (10, 11, 14):
        run.save_snapshot(step, {name: np.asarray(v) for name, v in random_params(MODEL, 90 + step).items()})
    dataset = analyze(run, table=(sums.measurement,))
    steps = (*STEPS[:5], 10, 11, 14)
    assert sums.seen[len(STEPS) :] == _sums(run, (10, 11, 14))
    np.testing.assert_array_equal(dataset["sums_of"], _sums(run, steps))


def test_answers_about_snapshots_that_are_gone_are_deleted(run: RunDir) -> None:
    sums = Sums()
    analyze(run, table=(sums.measurement,))
    folder = run.path / "analysis_parts" / "sums"
    before = {path.name for path in folder.iterdir()}
    run.manifest.write(run.manifest.read()[:2])
    analyze(run, table=(sums.measurement,))
    after = {path.name for path in folder.iterdir()}
    assert after < before
    assert len(sums.seen) == len(STEPS)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"not a zip"])
def test_a_damaged_part_is_measured_anew(run: RunDir, content: bytes) -> None:
    sums = Sums()
    expected = analyze(run, table=(sums.measurement,))
    part = min((run.path / "analysis_parts" / "sums").iterdir())
    part.write_bytes(content)
    xr.testing.assert_identical(analyze(run, table=(sums.measurement,)), expected)
    assert len(STEPS) < len(sums.seen) <= len(STEPS) + 2


def test_another_version_or_other_rows_are_measured_anew(run: RunDir) -> None:
    first, second = Sums(), Sums(version=2)
    analyze(run, table=(first.measurement,))
    analyze(run, table=(second.measurement,))
    assert second.seen == _sums(run)
    analyze(run, table=(second.measurement,), n_rows=3)
    assert second.seen == _sums(run) * 2


@pytest.mark.parametrize("change", ["data", "sequences", "constant"])
def test_whatever_an_answer_depends_on_is_measured_anew(
    run: RunDir, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = Sums()
    analyze(run, table=(sums.measurement,))
    if change == "data":
        config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, held_out_rows=130))
        run = dataclasses.replace(run, config=config)
    elif change == "sequences":
        monkeypatch.setattr(measurement, "_REPEAT_LEN", 3)
    else:
        monkeypatch.setattr(sys.modules[__name__], "TOP_OF_A_TEST", 8)
    analyze(run, table=(sums.measurement,))
    assert sums.seen == _sums(run) * 2


def test_chosen_snapshots_are_the_axis_and_the_others_stay_finished(run: RunDir) -> None:
    sums = Sums()
    few = analyze(run, table=(sums.measurement,), snapshots=3)
    assert few["snapshot"].values.tolist() == [0, 5, 11]
    named = analyze(run, table=(sums.measurement,), snapshots=[7, 0])
    assert named["snapshot"].values.tolist() == [0, 7]
    assert len(sums.seen) == 4
    everything = analyze(run, table=(sums.measurement,))
    assert everything["snapshot"].values.tolist() == list(STEPS)
    assert len(sums.seen) == len(STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": [0, 3]}, "--snapshots: no snapshot of step 3; the nearest are 1, 2, 5"),
        ({"snapshots": 1}, "--snapshots = 1: must be 2 or more"),
        ({"only": ["icl", "sum"]}, "--only = 'sum': no such measurement; there are"),
        ({"n_rows": 0}, "--rows = 0: must be 1 or more"),
    ],
)
def test_mistakes_are_named(run: RunDir, options: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        analyze(run, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_takes_what_was_named_and_what_it_needs(run: RunDir) -> None:
    sums, others = Sums(), Sums("others")
    double = Derived(
        "double", "nobody", ("sums_of",), {"twice": Variable(("snapshot",), "1", "twice")},
        lambda _context, dataset: {"twice": 2 * dataset["sums_of"].values},
    )  # fmt: skip
    quadruple = Derived(
        "quadruple", "nobody", ("twice",), {"four": Variable(("snapshot",), "1", "four times")},
        lambda _context, dataset: {"four": 2 * dataset["twice"].values},
    )  # fmt: skip
    # The order of the table does not matter.
    table = (quadruple, double, others.measurement, sums.measurement)
    dataset = analyze(run, only=["quadruple"], table=table)
    np.testing.assert_array_equal(dataset["four"], 4 * np.array(_sums(run)))
    assert others.seen == []
    absent = json.loads(dataset.attrs["absent"])
    assert absent == {"others": "not taken: not asked for (icl-jax analyze RUN --only others takes it)"}
    both = analyze(run, only=["others"], table=table)
    assert {"four", "others_of"} <= set(both), "what was finished before is there as well"


def test_what_does_not_apply_is_absent_with_the_reason(run: RunDir) -> None:
    never = Measurement(
        "never", "nobody", {"never_of": Variable((), "1", "x")}, lambda *_: pytest.fail("measured"),
        why_not=lambda context: f"n_layers = {context.config.model.n_layers}",
    )  # fmt: skip
    needs_it = Derived(
        "after", "nobody", ("never_of",), {"after_of": Variable((), "1", "x")}, lambda *_: pytest.fail("derived")
    )
    dataset = analyze(run, table=(Sums().measurement, never, needs_it))
    assert json.loads(dataset.attrs["absent"]) == {"never": "n_layers = 2", "after": "needs never_of"}
    assert set(dataset.data_vars) == {"sums_of"}


def test_values_that_are_not_finite_are_said_to_be_missing(run: RunDir) -> None:
    def measure(_context: Context, params: StackedParams, _seen: Arrays) -> Arrays:
        values = np.stack([params["W_E"][:, 0, 0] * np.nan, params["W_E"][:, 0, 0]], axis=1)
        return {"said": values, "not_said": values}

    odd = Measurement(
        "odd", "nobody",
        {"said": Variable(("pair",), "1", "x", "the first is not defined"), "not_said": Variable(("pair",), "1", "x")},
        measure,
    )  # fmt: skip
    dataset = analyze(run, table=(odd,))
    assert dataset["said"].attrs["missing"] == "7 of 14 values: the first is not defined"
    assert dataset["not_said"].attrs["missing"].startswith("7 of 14 values: UNEXPECTED")


def test_costly_measurements_look_at_few_snapshots_with_the_window_among_them(tmp_path: Path) -> None:
    steps = tuple(range(0, 58, 2))
    run = random_run(tmp_path / "run", MODEL, steps)
    costly = Sums("costly", on_few=True)
    window = Derived(
        "phase_change", "nobody", (), {n: Variable((), "1", "x") for n in ("step_before", "step_after")},
        lambda _context, _dataset: {"step_before": np.asarray(30), "step_after": np.asarray(32)},
    )  # fmt: skip
    dataset = analyze(run, only=["costly"], table=(costly.measurement, window))
    selected = dataset["selected"].values.tolist()
    assert len(selected) == 20
    assert {0, 30, 32, 56} <= set(selected)
    assert max(np.diff(selected)) <= 4
    assert dataset["costly_of"].dims == ("selected",)
    np.testing.assert_array_equal(dataset["costly_of"], _sums(run, selected))


def test_a_measurement_that_fills_other_variables_is_a_bug(run: RunDir) -> None:
    wrong = Measurement("wrong", "nobody", {"a": Variable((), "1", "x")}, lambda _c, p, _s: {"b": p["W_E"][:, 0, 0]})
    with pytest.raises(ValueError, match="wrong filled"):
        analyze(run, table=(wrong,))


def test_a_run_without_what_analysis_needs_is_refused(run: RunDir, tmp_path: Path) -> None:
    (run.path / "held_out.zarr").rmtree()
    with pytest.raises(UserError, match=r"held_out\.zarr: missing: analysis needs"):
        analyze(run)
    held_out = HeldOut(random_rows(MODEL, 3), np.arange(1, 19), 0)
    empty = RunDir.create(str(tmp_path / "empty"), run.config, corpus_sha256="0" * 64, held_out=held_out)
    with pytest.raises(UserError, match="has no snapshots yet"):
        analyze(empty)


def test_parameters_of_another_model_are_refused(tmp_path: Path) -> None:
    params = {name: np.asarray(value) for name, value in random_params(MODEL).items()}
    run = make_run(
        tmp_path / "run", MODEL, {0: params, 1: {**params, "W_U": params["W_U"][:, :-1]}}, random_rows(MODEL, 4)
    )
    with pytest.raises(UserError, match=r"snapshots/1: W_U has the shape \(6, 18\), but the config says \(6, 19\)"):
        analyze(run, table=(Sums().measurement,))


def test_a_context_of_four_tokens(tmp_path: Path) -> None:
    """What needs longer rows is absent with the reason; what is there is what it should be."""
    model = ModelConfig(n_layers=1, d_model=4, n_heads=1, n_ctx=4, vocab_size=7)
    dataset = analyze(random_run(tmp_path / "run", model, steps=(0, 10)))
    absent = json.loads(dataset.attrs["absent"])
    for name, why in (("head_scores", "two tokens four times"), ("copying", "two tokens four times"),
                      ("literal_copying", "two tokens twice")):  # fmt: skip
        assert absent[name] == f"n_ctx = 4: too short for BOS and {why}"
    missing = {name: values.attrs.get("missing", "") for name, values in dataset.variables.items()}
    assert not {name: why for name, why in missing.items() if "UNEXPECTED" in why}


# Of the Zarr v3 core specification: what every reader has, xarray 2025.1 with zarr 3.0.8 among them.
_CORE = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
}  # fmt: skip


def test_no_array_of_a_run_has_a_type_that_the_specification_lacks(tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", MODEL, STEPS)
    texts = xr.Dataset({"x": ("label", np.arange(2.0))}, coords={"label": ["phrase again", "né"]})
    save_dataset(texts, run.path / "analysis.zarr")
    xr.testing.assert_identical(load_dataset(run.path / "analysis.zarr").load(), texts)
    types = [json.loads(path.read_text()).get("data_type") for path in (tmp_path / "run").glob("*.zarr/*/zarr.json")]
    assert len(types) > 10
    assert set(types) <= _CORE
