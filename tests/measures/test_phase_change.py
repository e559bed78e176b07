"""Whether a run has a phase change, by its probes and snapshots, on curves whose truth is known."""

import dataclasses

import numpy as np
import pytest
import xarray as xr

from icl_jax.config import ModelConfig
from icl_jax.maths.finding import LEAST, LEAST_NATS, arrays_of, find_changes, finding_from
from icl_jax.measures import head_changes, label_changes, loss_changes, phase_change
from icl_jax.measures.measurement import Recorded
from icl_jax.measures.phase_change import finding_of
from tests.analysis.random_snapshots import context

U = np.linspace(0, 1, 60)
END = 6_000_000


def step(u: np.ndarray, start: float, end: float) -> np.ndarray:
    return 1 / (1 + 9 ** -((2 * u - start - end) / (end - start)))


def noise(seed: int, sd: float = 0.02) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=sd, size=len(U))


def dataset(tokens: np.ndarray, icl: np.ndarray, row_icl: np.ndarray | None = None) -> xr.Dataset:
    """Rows that differ by a constant, unless they are given."""
    rows = icl[:, None] + np.linspace(-0.5, 0.5, 5) if row_icl is None else row_icl
    coords = {"snapshot": np.arange(len(tokens)) * 10, "tokens": ("snapshot", tokens)}
    return xr.Dataset({"icl_windowed": ("snapshot", icl), "row_icl": (("snapshot", "row"), rows)}, coords=coords)


def derived(
    tokens: np.ndarray, icl: np.ndarray, recorded: Recorded | None = None, row_icl: np.ndarray | None = None
) -> xr.Dataset:
    found = dataset(tokens, icl, row_icl)
    answer = phase_change.derive(dataclasses.replace(context(ModelConfig(n_ctx=64)), recorded=recorded), found)
    dims = {name: variable.dims for name, variable in phase_change.DERIVED.variables.items()}
    return found.assign({name: (dims[name], values) for name, values in answer.items()})


def test_a_change_is_found_where_it_is_and_compared_across() -> None:
    found = derived(U * END, -step(U, 0.4, 0.5) + noise(0))
    assert str(found["change_status"].values) == "found"
    assert finding_of(found).words().startswith("2.4")
    before, after = (int(found[name]) // 10 for name in ("step_before", "step_after"))
    assert 0.33 < U[before] < 0.38
    assert 0.52 < U[after] < 0.57


@pytest.mark.parametrize("curve", [-U, np.exp(-8 * U), np.zeros(60)])
def test_a_smooth_run_has_none_and_is_compared_from_a_tenth_on(curve: np.ndarray) -> None:
    found = derived(U * END, curve + noise(1))
    assert str(found["change_status"].values) == "none"
    assert finding_of(found).words().startswith("no change found (p = ")
    assert np.isnan(found["change_start"]).all()
    assert (int(found["step_before"]), int(found["step_after"])) == (50, 590)


def test_what_the_rows_do_not_agree_on_is_no_phase_change() -> None:
    # As python-1l: a step of 0.04 nats in the mean of 256 rows, whose own falls differ by 0.32. One row has no say.
    icl = -0.04 * step(U, 0.4, 0.5) + noise(0, 0.003)
    apart = np.random.default_rng(1).normal(size=(1, 256))
    apart = (apart - apart.mean()) / apart.std(ddof=1)
    for spread, status in ((0.32, "none"), (0.16, "found")):
        found = derived(U * END, icl, row_icl=icl[:, None] + spread * step(U, 0.4, 0.5)[:, None] * apart)
        assert str(found["change_status"].values) == status
    assert str(derived(U * END, icl, row_icl=icl[:, None])["change_status"].values) == "found"


def test_a_run_that_ends_inside_says_so() -> None:
    found = derived(U * END, -step(U, 0.93, 1.07) + noise(2))
    assert str(found["change_status"].values) == "still going on"
    assert "still going on at the end" in finding_of(found).words()
    assert int(found["step_after"]) == 590


def test_what_is_a_small_part_of_the_fall_is_no_phase_change() -> None:
    curve = 0.9 * np.exp(-8 * U) - 0.1 * step(U, 0.4, 0.45)
    assert not find_changes(U * END, curve + noise(3, 0.005), schedule=None, direction=-1).changes
    tiny = step(U, 0.4, 0.45) + noise(3, 0.01)
    for least, direction in ((LEAST, 1), (LEAST_NATS, -1)):
        found = [
            find_changes(U * END, direction * size * tiny, schedule=None, direction=direction).changes
            for size in (0.8 * least, 1.3 * least)
        ]
        assert [len(changes) for changes in found] == [0, 1]


def test_a_corpus_of_few_nats_has_its_own_scale() -> None:
    # As the ICL score of markov-3: two steps of 0.04 nats, most of what it does.
    curve = -0.04 * (step(U, 0.4, 0.45) + step(U, 0.7, 0.75)) + noise(3, 0.002)
    found = find_changes(U * END, curve, schedule=None, direction=-1)
    assert [round(change.size, 2) for change in found.changes] == [-0.04, -0.04]


def test_probes_are_read_where_they_are_more_than_snapshots() -> None:
    curve = -0.5 * step(U, 0.4, 0.5) + noise(4, 0.05)
    recorded = Recorded((U * END, np.full(60, 0.1)), U * END, curve)
    few = slice(None, None, 4)
    by_probes = derived((U * END)[few], np.zeros(15), recorded)
    assert str(by_probes["change_status"].values) == "found"
    many = derived(np.linspace(0, END, 70), np.zeros(70), recorded)
    assert str(many["change_status"].values) == "none"
    # Snapshots that all lie before the change: they are compared over what there is of them.
    early = derived((U * END)[:12], np.zeros(12), recorded)
    assert (int(early["step_before"]), int(early["step_after"])) == (10, 110)


def test_arrays_hold_what_was_found() -> None:
    curves = [-step(U, 0.2, 0.25) - step(U, 0.7, 0.75) + noise(5), -step(U, 0.93, 1.07) + noise(6), noise(7)]
    findings = [find_changes(U * END, curve, schedule=None, direction=-1) for curve in curves]
    assert [len(finding.changes) for finding in findings] == [2, 1, 0]
    arrays = arrays_of(findings)
    for i, finding in enumerate(findings):
        assert (
            finding_from({name: np.asarray(values[i]) for name, values in arrays.items() if name != "status"})
            == finding
        )


def test_labels_share_one_chance_of_a_false_change() -> None:
    prob = np.stack([0.1 + 0.8 * step(U, 0.4, 0.5), 0.9 - 0.8 * np.exp(-9 * U), np.full(60, np.nan)], axis=1)
    prob += noise(8)[:, None]
    found = dataset(U * END, np.zeros(60)).assign(label_prob=(("snapshot", "label"), prob))
    answer = label_changes.derive(context(ModelConfig(n_ctx=64)), found)
    assert answer["label_change_status"].tolist() == ["found", "none", "too few points"]
    assert answer["label_change_size"][0, 0] == pytest.approx(0.8, abs=0.05)
    # One curve with p between a fifth of 0.03 and 0.03 has a change by itself, and none among five.
    p = 0.0
    for seed in range(400):
        curve = -0.3 * step(U, 0.4, 0.5) + noise(seed, 0.1)
        p = find_changes(U * END, curve, schedule=None, direction=-1).p_value
        if 0.03 / 5 < p < 0.03:
            break
    assert 0.03 / 5 < p < 0.03
    assert not find_changes(U * END, curve, schedule=None, direction=-1, n_tests=5).changes


def test_heads_share_one_chance_of_a_false_change_and_are_read_at_the_probes() -> None:
    scores = np.full((60, 2, 3), 0.03)
    scores[:, 1, 0] += 0.5 * step(U, 0.4, 0.5)
    scores[:, 1, 1] += 0.4 * (1 - np.exp(-6 * U))
    scores += np.random.default_rng(9).normal(scale=0.005, size=scores.shape)
    heads = ("snapshot", "layer", "head")
    few = slice(None, None, 4)
    at_snapshots = dict.fromkeys(("prefix_matching", "previous_token", "copying_eigenvalue"), (heads, scores[few]))
    found = dataset((U * END)[few], np.zeros(15)).assign(at_snapshots)
    recorded = Recorded((U * END, np.full(60, 0.1)), U * END, np.zeros(60), None, {"prefix_matching": scores})
    answer = head_changes.derive(dataclasses.replace(context(ModelConfig(n_ctx=64)), recorded=recorded), found)
    status, p = answer["head_change_status"], answer["head_change_p"]
    assert status.shape == (3, 2, 3)
    assert status[0].tolist() == [["none"] * 3, ["found", "none", "none"]]
    # Seven of the sixty points lie inside: of the fifteen snapshots one or two.
    assert answer["head_change_start"][0, 1, 0, 0] / END == pytest.approx(0.4, abs=0.02)
    assert p[0, 1, 0] < 0.03 / 18
    # One that hardly moves is not tested, and stays a part of the family.
    assert p[0, 0].tolist() == [1.0] * 3


def test_the_loss_is_looked_at_too() -> None:
    loss = (4 - step(U, 0.4, 0.5) + noise(10))[:, None] + np.array([[0.5, -0.5]])
    found = dataset(U * END, np.zeros(60)).assign(loss_by_position=(("snapshot", "position"), loss))
    answer = loss_changes.derive(context(ModelConfig(n_ctx=64)), found)
    assert str(answer["loss_change_status"]) == "found"
    assert answer["loss_change_size"][0] == pytest.approx(-1.0, abs=0.05)
