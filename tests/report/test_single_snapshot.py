"""The report of one snapshot, of someone else's model say: no chart of one point, and what ablation says of text."""

import base64
import csv
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from icl_jax.config import UserError
from icl_jax.report.chart import Chart, Gap, Value
from icl_jax.report.figures.table import FIGURES
from icl_jax.report.page.page_data import page_data
from icl_jax.report.pictures import save_figure
from icl_jax.report.reported_run import ReportedRun
from icl_jax.report.verdicts import ablation
from tests.report.made_runs import PER_HEAD, made_run, no_change, plain_run, small_model

MODEL = small_model(n_layers=3)
SCORES = np.array([[[0.1, 0.2], [0.3, 0.05], [0.9, 0.4]]])
ATTRS = {"icl_early": 4, "icl_late": 17, "icl_early_window": [1, 2], "icl_late_window": [15, 17]}
SETS = ("selected", "ablated_set")


def _on_text(n: int, seen: tuple[float, float, float], new: tuple[float, float, float]) -> dict[str, Any]:
    """Variables of seen_bigrams at n snapshots: losses intact, without the induction heads, without others."""
    copies = np.array([[5.0, 3.0, 1.0, 0.5], [5.0, 9.0, 8.0, 7.0], [5.0, 3.5, 1.2, 0.6]])
    return {
        "set_seen_bigram_loss": (SETS, np.tile(seen, (n, 1))),
        "set_new_bigram_loss": (SETS, np.tile(new, (n, 1))),
        "set_copy_loss": ((*SETS, "copy"), np.tile(copies, (n, 1, 1))),
        "in_induction_set": (("selected", "layer", "head"), np.tile(SCORES[0] > 0.8, (n, 1, 1)).astype(np.float32)),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ReportedRun:
    scores = {"icl_windowed": -0.44, "icl_sem": 0.14, "icl_score": -0.71, "icl_score_sem": 0.47}
    variables: dict[str, Any] = {
        **{name: (("snapshot",), [value]) for name, value in scores.items()},
        "prefix_matching": (PER_HEAD, SCORES),
        "previous_token": (PER_HEAD, SCORES[:, ::-1]),
        "qk_trace": (PER_HEAD, 10 * SCORES - 2),
        "loss_by_position": (("snapshot", "position"), np.linspace(3, 1, 17)[None]),
        "bin_index": (("bin",), np.array([1.0, 4.0, 12.0])),
        "loss_derivative": (("snapshot", "bin"), [[-0.2, -0.3, -0.1]]),
        **_on_text(1, (0.9, 1.6, 1.0), (3.3, 3.4, 3.4)),
        **no_change() | {"change_p": ((), np.nan), "step_before": ((), 1), "step_after": ((), 1)},
    }
    made = made_run(tmp_path_factory.mktemp("single") / "run", MODEL, variables, steps=[1])
    made.data.attrs.update(ATTRS)
    return made


def _panel(run: ReportedRun, name: str) -> Chart | Gap | Value:
    (figure,) = [figure for figure in FIGURES if figure.name == name]
    (panel,) = figure.panels([run])
    return panel.chart


def test_no_curve_has_one_point(run: ReportedRun) -> None:
    for figure in FIGURES:
        for panel in figure.panels([run]):
            if isinstance(panel.chart, Chart):
                assert not panel.chart.x.is_tokens, figure.name
                assert "→" not in panel.ours, figure.name
    score = _panel(run, "icl_score")
    assert isinstance(score, Value)
    assert score.text == "tokens 15 to 17 minus 1 to 2: −0.44 ± 0.14 nats; token 17 minus 4: −0.71 ± 0.47 nats"
    for name in ("changes", "icl_comparison"):
        assert _panel(run, name) == Gap("one snapshot has no curve")
    loss = _panel(run, "loss_by_position")
    assert isinstance(loss, Chart)
    np.testing.assert_allclose(loss.series[0].y[[0, -1]], (3, 1))


def test_heads_are_a_map(run: ReportedRun, tmp_path: Path) -> None:
    for name, values in (("prefix_matching", SCORES[0]), ("qk_trace", 10 * SCORES[0] - 2)):
        chart = _panel(run, name)
        assert isinstance(chart, Chart)
        assert chart.heat is not None
        np.testing.assert_array_equal(chart.heat.z, values)
        assert (chart.x.label, chart.y.label, chart.heat.heads) == ("head", "layer", True)
    (figure,) = [figure for figure in FIGURES if figure.name == "prefix_matching"]
    assert all(path.stat().st_size for path in save_figure(figure, [run], tmp_path))
    rows = list(csv.reader((tmp_path / "prefix_matching.csv").read_text().splitlines()))
    assert rows[:2] == [["run", "head", "layer", "prefix matching"], ["run", "0.0", "0.0", "0.1"]]


def test_losses_without_heads_are_bars_or_curves(run: ReportedRun, tmp_path: Path) -> None:
    (figure,) = [figure for figure in FIGURES if figure.name == "seen_bigrams"]
    (panel,) = figure.panels([run])
    chart = panel.chart
    assert isinstance(chart, Chart)
    assert chart.x.names == ("bigram seen before", "other tokens", "copy 2", "copy 3", "copy 4")
    expected = [[0.9, 3.3, 3.0, 1.0, 0.5], [1.6, 3.4, 9.0, 8.0, 7.0], [1.0, 3.4, 3.5, 1.2, 0.6]]
    np.testing.assert_allclose([series.y for series in chart.series], expected)
    assert panel.ours == "at the end without the induction heads +0.70 nats where it was seen, +0.10 elsewhere"
    save_figure(figure, [run], tmp_path)
    rows = list(csv.reader((tmp_path / "seen_bigrams.csv").read_text().splitlines()))
    assert rows[1] == ["run", "intact", "bigram seen before", "0.9"]
    trained = made_run(tmp_path / "trained", MODEL, no_change() | _on_text(11, (0.9, 1.6, 1.0), (3.3, 3.4, 3.4)))
    charts = [panel.chart for panel in figure.panels([trained])]
    assert [chart.title for chart in charts if isinstance(chart, Chart)] == [
        "bigram seen before", "other tokens", "copy 4 of random tokens",
    ]  # fmt: skip


def test_the_argument_on_ablation_rests_on_text_where_heads_were_not_ablated_singly(
    run: ReportedRun, tmp_path: Path
) -> None:
    finding, effect, limits = ablation([run])
    assert finding == "supported"
    assert effect == [
        "run: without the heads of highest prefix matching (1) +0.70 nats where the bigram stood before and +0.10 "
        "elsewhere, without others of their layers +0.10 and +0.10"
    ]
    assert limits == "of one snapshot or of the last: whether it was so before a change is open"
    for seen, new, expected in (
        ((0.9, 1.0, 1.6), (3.3, 3.3, 3.3), "partly"),  # others cost more
        ((0.9, 0.9, 1.6), (3.3, 3.6, 3.3), "not supported"),  # nor where there is something to copy
        ((0.9, 1.6, np.nan), (3.3, 3.4, np.nan), "supported"),  # there are no others
    ):
        name = str(seen[1:])
        other = plain_run(tmp_path / name, forms=True, model=MODEL, **_on_text(11, seen, new))
        assert ablation([other])[0] == expected


def test_the_page_says_it_of_one_snapshot(run: ReportedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_jax.report.page.page_data.moments", lambda *_: {})
    plt.imsave(run.run.path / "audit.png", np.random.default_rng(0).random((40, 60)))
    picture = (run.run.path / "audit.png").read_bytes()
    data = page_data([run])
    assert base64.b64decode(data["runs"][0]["audit"]) == picture
    (score,) = [figure for figure in data["model_analysis"] if figure["name"] == "icl_score"]
    assert score["panels"][0]["value"].startswith("tokens 15 to 17")


@pytest.mark.parametrize("damage", ["garbage", "truncated", "one byte", "empty"])
def test_a_damaged_picture_of_the_audit_is_named(
    run: ReportedRun, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr("icl_jax.report.page.page_data.moments", lambda *_: {})
    path = run.run.path / "audit.png"
    plt.imsave(path, np.random.default_rng(0).random((40, 60)))
    picture = path.read_bytes()
    middle = len(picture) // 2
    damaged = {
        "garbage": b"garbage",
        "truncated": picture[:middle],
        "one byte": picture[:middle] + bytes([picture[middle] ^ 1]) + picture[middle + 1 :],
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=r"audit\.png: a damaged picture"):
        page_data([run])
    path.unlink()
