"""Axes that runs with members vary, and the laws along them."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from icl_jax.config import Config, parse_config
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.report.axes import axes_of, laws_rows
from icl_jax.report.chart import Chart, Gap
from icl_jax.report.figures.laws import LAWS
from icl_jax.report.figures.over_members import ReportedMembers
from icl_jax.report.members import members_figures

BASE = parse_config('[train]\nbatch_size = 32\nn_steps = 500\n[optimizer]\nschedule = "constant"\n[members]\nseeds = 4')


def _run(config: Config, times: list[float], name: str = "run") -> ReportedMembers:
    """Members whose best head passes the threshold there, between two probes; NaN: none by 1e6 tokens."""
    tokens = np.linspace(0, 1e6, 101)
    best = np.array([np.clip(HEAD_THRESHOLD + (tokens - time) / 1e5, 0.05, 0.9) for time in times])
    heads = np.stack([np.full_like(best, 0.05), np.nan_to_num(best, nan=0.05)], axis=-1)[:, :, None]
    data = xr.Dataset({
        "probe_tokens": ("probe", tokens), "prefix_matching": (("member", "probe", "layer", "head"), heads),
    })  # fmt: skip
    return ReportedMembers(name, data, config, 0.25)


def _batch(size: int, n_steps: int = 500) -> Config:
    return replace(BASE, train=replace(BASE.train, batch_size=size, n_steps=n_steps))


RUNS = [
    _run(BASE, [4e5, 4.1e5, 3.9e5, 4e5]),
    _run(_batch(8, 900), [2e5, 2.1e5, 1.9e5, 2e5]),
    _run(_batch(128), [8e5, 8.2e5, np.nan, 7.8e5]),
    _run(replace(BASE, optimizer=replace(BASE.optimizer, name="sgd", lr=0.1)), [9e5, np.nan, np.nan, 8e5]),
    # Differs in two fields: on no axis.
    _run(replace(_batch(64), model=replace(BASE.model, n_ctx=64)), [1e5] * 4),
]


def test_an_axis_of_one_field() -> None:
    batch, by_name = axes_of(RUNS)
    assert (batch.field, batch.label) == ("train.batch_size", "rows a batch")
    assert sorted(set(batch.values)) == [8, 32, 128]
    assert batch.has_formed.sum() == 11
    assert batch.tokens[:4] == pytest.approx([4e5, 4.1e5, 3.9e5, 4e5])
    assert batch.tokens[~batch.has_formed].tolist() == [1e6]  # where it was last looked at
    assert batch.law is not None
    assert batch.law.exponent == pytest.approx(0.5, abs=0.05)
    assert by_name.names == ("adamw", "sgd, lr 0.1")
    assert by_name.law is None


def test_the_table_has_both_units_and_what_was_censored() -> None:
    header, (row,) = laws_rows(axes_of(RUNS))
    cells = dict(zip(header, row, strict=True))
    in_tokens, in_steps = (float(cells[f"exponent, {unit}"].split()[0]) for unit in ("tokens", "steps"))
    assert in_steps == pytest.approx(in_tokens - 1)
    assert (cells["values"], cells["seeds"], cells["censored"]) == ("8, 32, 128", "12", "1 at 128")


def test_values_without_a_head_are_left_out_of_a_second_row() -> None:
    runs = [*RUNS[:3], _run(_batch(2), [np.nan] * 4)]
    _, (whole, part) = laws_rows(axes_of(runs))
    assert (whole[1], whole[-1]) == ("2, 8, 32, 128", "4 at 2, 1 at 128")
    assert (part[0], part[1]) == ("rows a batch, without 2", "8, 32, 128")
    assert float(part[2].split()[0]) == pytest.approx(0.5, abs=0.05)


def test_a_field_that_members_of_one_run_vary() -> None:
    config = replace(BASE, members=replace(BASE.members, values="optimizer.lr=0.001,0.01"))
    (axis,) = axes_of([_run(BASE, [4e5] * 4), _run(config, [8e5] * 4 + [1e5] * 4)])
    assert axis.field == "optimizer.lr"
    assert sorted(set(axis.values)) == [0.001, 0.003, 0.01]
    assert axis.per_step == 0


def test_repeats_are_counted_in_held_out_rows() -> None:
    rare, often = (parse_config(f"[data.repeats]\nphrase_prob = {p}\n[members]\nseeds = 4") for p in (0.1, 0.5))
    base = parse_config("[members]\nseeds = 4")
    runs = [_run(base, [4e5] * 4), replace(_run(rare, [8e5] * 4), repeated=0.1),
            replace(_run(often, [2e5] * 4), repeated=0.5)]  # fmt: skip
    (axis,) = axes_of(runs)
    assert sorted(set(axis.values)) == [0.1, 0.25, 0.5]


def test_its_figure() -> None:
    assert LAWS in members_figures(RUNS)
    assert LAWS not in members_figures(RUNS[:1])
    batch, by_name = (panel.chart for panel in LAWS.panels(RUNS))
    assert isinstance(batch, Chart)
    assert [series.label for series in batch.series] == ["an induction head has formed", "none by then", "power law"]
    assert isinstance(by_name, Chart)
    assert by_name.x.names == ("adamw", "sgd, lr 0.1")
    (gap,) = LAWS.panels(RUNS[:1])
    assert isinstance(gap.chart, Gap)
