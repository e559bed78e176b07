"""record.zarr as a reader of another program meets it, and as training writes it."""

import json
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from etils import epath

from icl_jax.config import Config, UserError
from icl_jax.rundir import probe_steps
from icl_jax.rundir.record import Record, load_record
from tests.rundir.made_run import probe_of, run_config, steps_of

DIMS = {
    "step": ("step",),
    "position": ("position",),
    "tokens": ("step",),
    "loss": ("step", "position"),
    "lr": ("step",),
    "grad_norm": ("step",),
    "step_s": ("step",),
    "probe_step": ("probe",),
    "probe_tokens": ("probe",),
    "icl_score": ("probe",),
    "icl_windowed": ("probe",),
    "icl_score_sem": ("probe",),
    "icl_sem": ("probe",),
    "held_out_loss": ("probe", "position"),
    "prefix_matching": ("probe", "layer", "head"),
    "previous_token": ("probe", "layer", "head"),
}
DTYPES = {"position": np.int32, **dict.fromkeys(("step", "tokens", "probe_step", "probe_tokens"), np.int64)}
UNITS = {"loss": "nats", "held_out_loss": "nats", "icl_score": "nats", "icl_windowed": "nats", "step_s": "s"}
UNITS |= dict.fromkeys(("icl_sem", "icl_score_sem"), "nats")


def _record(tmp_path: Path, config: Config) -> tuple[epath.Path, Record]:
    path = epath.Path(tmp_path) / "record.zarr"
    return path, Record.create(path, config, {"schema_version": 1, "icl_early": 4})


def _assert_prefix(found: xr.Dataset, config: Config, n_steps: int, n_probes: int) -> None:
    """The first `n_steps` steps and `n_probes` probes, nothing else, all values as written."""
    block = steps_of(config, 0, n_steps)
    assert found.sizes["step"] == n_steps
    for name in ("loss", "lr", "grad_norm", "step_s"):
        np.testing.assert_array_equal(found[name], getattr(block, name))
    np.testing.assert_array_equal(found["tokens"], np.arange(n_steps) * 5 * 7)
    steps = probe_steps(config)[:n_probes]
    assert found["probe_step"].values.tolist() == steps
    assert found["probe_tokens"].values.tolist() == [step * 35 for step in steps]
    for i, step in enumerate(steps):
        probe = probe_of(config, step)
        for name in (
            "icl_score", "icl_windowed", "icl_score_sem", "icl_sem", "held_out_loss", "prefix_matching",
            "previous_token",
        ):  # fmt: skip
            np.testing.assert_array_equal(found[name][i], np.asarray(getattr(probe, name), np.float32))


def test_it_opens_with_xarray_alone(tmp_path: Path) -> None:
    config = run_config()
    path, record = _record(tmp_path, config)
    record.write_steps(steps_of(config, 0, 11))
    for step in probe_steps(config):
        record.write_probe(probe_of(config, step))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(str(path)).load()
    assert plain.attrs.pop("seal").keys() == {"", *plain.variables}
    assert plain.attrs == {"schema_version": 1, "icl_early": 4}
    assert dict(plain.sizes) == {"step": 11, "position": 7, "probe": 3, "layer": 2, "head": 3}
    assert {str(name): plain[name].dims for name in plain.variables} == DIMS
    for name, variable in plain.variables.items():
        assert variable.attrs["units"] == UNITS.get(str(name), "1")
        assert variable.attrs["long_name"]
        assert variable.dtype == DTYPES.get(str(name), np.float32)
    _assert_prefix(plain, config, 11, 3)
    assert json.loads((tmp_path / "record.zarr" / "zarr.json").read_text())["zarr_format"] == 3


def test_what_has_not_been_recorded_is_cut_off(tmp_path: Path) -> None:
    config = run_config()
    path, record = _record(tmp_path, config)
    assert load_record(path).sizes["step"] == load_record(path).sizes["probe"] == 0
    n_probes = 0
    for first, end in ((0, 1), (1, 5), (5, 6)):
        record.write_steps(steps_of(config, first, end))
        if first in probe_steps(config):
            record.write_probe(probe_of(config, first))
            n_probes += 1
        _assert_prefix(load_record(path), config, end, n_probes)
    assert n_probes == 1
    assert set(load_record(path).coords) == {"step", "position", "tokens", "probe_step", "probe_tokens"}


@pytest.mark.parametrize("step", [0, 1, 4, 6, 7, 11])
def test_cut_forgets_that_step_and_all_later(tmp_path: Path, step: int) -> None:
    config = run_config()
    path, record = _record(tmp_path, config)
    record.write_steps(steps_of(config, 0, 11))
    for probe_step in probe_steps(config):
        record.write_probe(probe_of(config, probe_step))
    record.cut(step)
    _assert_prefix(load_record(path), config, step, sum(s < step for s in probe_steps(config)))
    whole = xr.open_zarr(str(path))
    assert np.isnan(whole["loss"][step:]).all()
    assert np.isnan(whole["prefix_matching"][sum(s < step for s in probe_steps(config)) :]).all()
    # What was cut can be written again.
    Record(path, config).write_steps(steps_of(config, step, 11))
    assert load_record(path).sizes["step"] == 11


def test_steps_after_a_gap_do_not_count(tmp_path: Path) -> None:
    config = run_config()
    path, record = _record(tmp_path, config)
    record.write_steps(steps_of(config, 0, 3))
    record.write_steps(steps_of(config, 4, 6))
    _assert_prefix(load_record(path), config, 3, 0)


def test_chunks_are_whole_rows_of_about_a_mebibyte(tmp_path: Path) -> None:
    config = run_config(n_steps=5000, n_ctx=301)
    path, _ = _record(tmp_path, config)
    loss = zarr.open_group(str(path), mode="r")["loss"]
    assert isinstance(loss, zarr.Array)
    assert loss.chunks == (870, 301)
    assert loss.shape == (5000, 301)


def test_a_model_without_layers_has_no_head_scores_and_no_probes_no_probe_axis(tmp_path: Path) -> None:
    config = run_config(n_layers=0)
    path, record = _record(tmp_path / "a", config)
    record.write_probe(probe_of(config, 0))
    record.cut(5)
    assert {"prefix_matching", "previous_token"}.isdisjoint(load_record(path))
    assert load_record(path)["icl_score"].values.tolist() == [0.0]
    config = run_config(n_probes=0)
    path, record = _record(tmp_path / "b", config)
    record.write_steps(steps_of(config, 0, 2))
    record.cut(1)
    assert "probe" not in load_record(path).dims
    assert load_record(path).sizes["step"] == 1


def test_a_record_that_cannot_be_read_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        load_record(epath.Path(tmp_path) / "nowhere.zarr")
    path, _ = _record(tmp_path, run_config())
    (path / "loss" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=r"record\.zarr"):
        load_record(path)


def test_a_record_of_two_thousand_million_steps_takes_no_memory(tmp_path: Path) -> None:
    short = run_config()
    config = replace(short, train=replace(short.train, n_steps=2_000_000_000))
    tracemalloc.start()
    path, record = _record(tmp_path, config)
    record.write_steps(steps_of(config, 0, 5))
    record.cut(3)
    found = load_record(path).load()
    # As if it had been trained so far: the numbers of the steps there are written with them.
    far = 1_000_000_000
    Record(path, config).write_steps(steps_of(config, far, far + 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    _assert_prefix(found, config, 3, 0)
    assert found["step"].values.tolist() == [0, 1, 2]
    assert found.sel(step=1)["loss"].shape == (7,)
    numbers = zarr.open_group(str(path), mode="r")
    assert numbers["step"][far : far + 2].tolist() == [far, far + 1]  # type: ignore[index]
    assert numbers["tokens"][far] == 35 * far  # type: ignore[index]
