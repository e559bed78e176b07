"""What a report says of a run with members: numbers of RUN/analysis.zarr, in the page, in pictures and in CSV files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from icl_jax.analysis.dataset import load_dataset
from icl_jax.report.members import shown_members
from icl_jax.report.page.arrays import read_array
from icl_jax.rundir import RunDir
from tests.report.made_runs import N_MEMBERS, WITHOUT
from tests.report.page.test_page import page_json
from tests.train.runs import command, only_line


def over(members: Path) -> xr.Dataset:
    return load_dataset(RunDir.open(str(members)).path / "analysis.zarr").load()


def test_numbers_of_members_on_the_page(members: Path, members_page: Path) -> None:
    data, found = page_json(members_page), over(members)
    assert data["title"] == f"many, {N_MEMBERS} members"
    (section,) = data["over_members"]
    assert section["counts"] == f"{N_MEMBERS - 1} changed, 0 still going on, 1 without"
    for quantity in section["quantities"]:
        values = read_array(data["arrays"][quantity["values"]])
        np.testing.assert_array_equal(values, found[quantity["name"]].values.astype(np.float32))
    assert {"start", "size", "known_loss", "known_k_composition"} <= {one["name"] for one in section["quantities"]}
    assert [name for name in section["shown"] if name is not None] == list(range(5))
    assert [run["name"] for run in data["runs"]] == [f"many/members/{k}" for k in shown_members(found)]
    assert {0, WITHOUT, N_MEMBERS - 1} <= set(shown_members(found))
    median = found["start_quantiles"].values[2] / 1e6
    assert section["quantiles"][0][3].startswith(f"{median:.3g} (")
    assert len(section["laws"]) == 10
    assert [row[0] for row in section["known"]] == [
        "loss", "icl", "previous token", "prefix matching", "k composition"
    ]  # fmt: skip
    assert "Together they predict" not in section["predicted"]  # of eleven members, by five numbers
    assert members_page.stat().st_size < 8e6


def test_pictures_and_csv_of_members(members: Path, members_page: Path) -> None:
    folder, found = members_page.parent / "figures", over(members)
    for name in ("members_curves", "members_times", "members_heads", "members_scatter"):
        for kind in ("png", "pdf", "csv"):
            assert (folder / f"{name}.{kind}").stat().st_size > 100
    with (folder / "members.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["member"]) for row in rows] == list(range(N_MEMBERS))
    np.testing.assert_array_equal([float(row["start"]) for row in rows], found["start"].values)
    np.testing.assert_array_equal([float(row["end_interval_high"]) for row in rows], found["end_interval"].values[:, 1])
    assert rows[WITHOUT]["status"] == "none"
    with (folder / "members_times.csv").open(newline="") as file:
        starts = [row for row in csv.DictReader(file) if row["series"] == "not yet past the start"]
    assert [float(starts[at]["share of members"]) for at in (0, -1)] == pytest.approx([1, 1 / N_MEMBERS])


def test_a_member_that_is_not_there(members: Path) -> None:
    status, _, err = command("report", members, f"{members}/members/{N_MEMBERS}")
    assert status == 2
    assert f"member = {N_MEMBERS}: must be from 0 to {N_MEMBERS - 1}" in only_line(err)
