import csv
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from icl_jax import process
from icl_jax.analysis.run_measurements import analyze
from icl_jax.cli import analyze as cli_analyze
from icl_jax.cli.main import run as run_cli
from icl_jax.report import write
from icl_jax.report.figures import composition, icl_comparison, loss_by_position, prefix_matching, smear
from icl_jax.report.figures.table import BEHAVIOURS, COMPARISONS, MODEL_ANALYSIS
from icl_jax.report.page.arrays import ArrayStore, read_array
from icl_jax.report.page.html import render_page, script_json
from icl_jax.report.reported_run import open_runs
from tests.analysis.small_runs import hand_built_run
from tests.report.made_runs import HOSTILE


def page_json(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def data(page: Path) -> dict:
    return page_json(page)


def panel(data: dict, name: str, run: int = 0) -> dict:
    (figure,) = [f for f in data["model_analysis"] + data["behaviour_figures"] if f["name"] == name]
    return figure["panels"][run]


def test_numbers_on_the_page_are_those_of_the_analysis(runs: list[str], data: dict) -> None:
    """Every head's curve, both heat maps, the ICL score and what the slider moves, read back from the page."""
    found = xr.open_zarr(runs[0] + "/analysis.zarr").load()

    def array(index: int) -> np.ndarray:
        return read_array(data["arrays"][index])

    for variable in ("prefix_matching", "previous_token", "qk_trace"):
        for series in panel(data, variable)["chart"]["series"]:
            layer, head = series["head"]
            np.testing.assert_array_equal(array(series["x"]), found["tokens"].astype(np.float32))
            np.testing.assert_array_equal(array(series["y"]), found[variable][:, layer, head].astype(np.float32))
    for name, variable in (
        ("ablation_along_change", "pattern_preserving_along_change"),
        ("ablation_icl", "pattern_preserving_icl_effect"),
        ("full_ablation", "full_along_change"),
    ):
        for series in panel(data, name)["chart"]["series"]:
            layer, head = series["head"]
            np.testing.assert_array_equal(array(series["y"]), found[variable][:, layer, head].astype(np.float32))
            np.testing.assert_array_equal(array(series["x"]), found["selected_tokens"].astype(np.float32))
    windowed = panel(data, "icl_score")["chart"]["series"][0]
    np.testing.assert_array_equal(array(windowed["y"]), found["icl_windowed"].astype(np.float32))
    heat = panel(data, "loss_by_position")["chart"]["heat"]
    rows = np.round(array(heat["y"])).astype(int) - 1
    expected = found["loss_by_position"].values[:, rows].T
    np.testing.assert_array_equal(array(heat["z"]).reshape(expected.shape), expected)
    assert list(rows[:5]) == [0, 1, 2, 3, 4]
    assert rows[-1] == 16
    derivative = panel(data, "loss_derivative")["chart"]["heat"]
    np.testing.assert_array_equal(array(derivative["z"]), found["loss_derivative"].values.T.astype(np.float32).ravel())
    moment = data["moments"][0]
    np.testing.assert_array_equal(array(moment["loss"]), found["loss_by_position"].values[:, rows].ravel())
    np.testing.assert_array_equal(array(moment["scores"]["prefix_matching"]), found["prefix_matching"].values.ravel())
    for i, series in enumerate(panel(data, "behaviours_over_training")["chart"]["series"]):
        np.testing.assert_array_equal(array(series["y"]), found["label_prob"][:, i])
    row = data["token_losses"][0]["rows"][3]
    before = data["token_losses"][0]["before"]
    shown = array(row["loss"]).reshape(len(data["token_losses"][0]["at"]), -1)
    expected = found["example_loss"].sel(snapshot=int(found["step_before"]))[3].values
    np.testing.assert_array_equal(shown[before], expected)


def test_the_phase_change_is_on_every_axis_of_tokens(runs: list[str], data: dict) -> None:
    found = xr.open_zarr(runs[0] + "/analysis.zarr")
    for figure in data["model_analysis"]:
        chart = figure["panels"][0].get("chart")
        if chart is None or not chart["x"]["tokens"]:
            continue
        (band,) = chart["bands"]
        assert (band["start"], band["end"]) == (float(found["change_start"][0]), float(found["change_end"][0]))
        assert band["start_interval"] == found["change_start_interval"].values[0].tolist()
        assert not band["is_open"]
    # The gain grows from step 40 to 60, at 8 x 17 tokens a step.
    assert 30 * 136 <= band["start"] < band["end"] <= 70 * 136


def test_every_figure_is_there_for_every_run_or_says_why_not(data: dict) -> None:
    assert [f["name"] for f in data["model_analysis"]] == [f.name for f in MODEL_ANALYSIS if not f.on_request]
    for figure in data["model_analysis"] + data["behaviour_figures"]:
        assert sorted({found["run"] for found in figure["panels"]}) == [0, 1]  # one or several for each
        for found in figure["panels"]:
            assert ("chart" in found) != bool(found.get("gap"))
        assert figure["shows"].endswith(".")
        assert figure["look_for"].endswith(".")
    assert panel(data, "prefix_matching", 1)["gap"] == "the model has no layers, so it has no heads"
    # What is derived from an absent measurement gives that one's reason.
    assert panel(data, "ablation_icl", 1)["gap"] == "the model has no layers, so it has no heads"
    assert panel(data, "smear", 0)["gap"] == "model.smeared_keys = false: keys are not smeared"
    assert "chart" in panel(data, "loss", 1)


def test_token_texts_are_the_tokenizers_or_ids(runs: list[str], data: dict) -> None:
    ids = xr.open_zarr(runs[0] + "/analysis.zarr")["example_id"].values
    texts = data["token_losses"][0]["rows"][0]["texts"]
    assert len(texts) == 17
    assert {HOSTILE[1], HOSTILE[2], HOSTILE[5]} <= {t for row in data["token_losses"][0]["rows"] for t in row["texts"]}
    assert texts[0] == HOSTILE[ids[0, 0]].replace("\u202e", "\\u202e").replace("\x00\x1b", "\\x00\\x1b").replace(
        "\u2028", "\\u2028"
    ).replace("\u2029", "\\u2029")  # fmt: skip
    zero = xr.open_zarr(runs[1] + "/analysis.zarr")["example_id"].values
    assert data["token_losses"][1]["rows"][2]["texts"] == [str(i) for i in zero[2]]


def test_hostile_text_cannot_leave_its_script(page: Path, data: dict) -> None:
    text = page.read_text(encoding="utf-8")
    assert data["runs"][0]["name"] == '<i>two & "layers"'
    body = text[text.index('id="data">') : text.index("</script>", text.index('id="data">'))]
    assert not set("<&\u2028\u2029") & set(body)
    assert body.count(">") == 1  # that of the script element
    # The page's own three elements open in its lines; the plotting library mentions some inside its strings.
    assert len(re.findall(r"^<script", text, re.MULTILINE)) == len(re.findall(r"</script>$", text, re.MULTILINE)) == 3
    assert script_json(["</script>&\u2028"]) == '["\\u003c/script\\u003e\\u0026\\u2028"]'
    assert json.loads(script_json(list(HOSTILE))) == list(HOSTILE)
    with pytest.raises(ValueError, match="Out of range"):
        script_json([float("nan")])


def test_places_in_the_data_are_not_filled() -> None:
    text = render_page({"title": "{{ script }} <b>", "token": "{{ plotly }}"})
    assert "<title>icl_jax: {{ script }} &lt;b&gt;</title>" in text
    assert '"token":"{{ plotly }}"' in text
    assert text.count("plotly.js v") == 1


def test_the_page_allows_its_own_scripts_and_no_connection(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    head = text[: text.index('<script type="application/json"')]
    assert not re.findall(r"(src|href)=\"(?!#)", head)


def test_a_figure_is_written_as_picture_and_numbers(runs: list[str], data: dict, tmp_path: Path) -> None:
    """Curves, a matrix, a diagram; none where there is nothing to draw."""
    opened = open_runs(runs)
    for module in (prefix_matching, loss_by_position, composition, icl_comparison, smear):
        written = write.save_figure(module.FIGURE, opened, tmp_path)
        kinds = () if module is smear else ("png", "pdf", "csv")
        assert written == [tmp_path / f"{module.FIGURE.name}.{kind}" for kind in kinds]
    assert len(list(tmp_path.iterdir())) == 4 * 3
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.glob("*.png"))
    assert all(path.read_bytes()[:4] == b"%PDF" for path in tmp_path.glob("*.pdf"))
    found = xr.open_zarr(runs[0] + "/analysis.zarr").load()
    with (tmp_path / "prefix_matching.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["run", "series", "training tokens", "prefix matching"]
    assert {row[0] for row in rows} == {opened[0].name}  # the other has no heads
    values = {(row[1], float(row[2])): float(row[3]) for row in rows}
    assert len(values) == 11 * 2
    assert values["head 1.0", 40 * 136] == float(found["prefix_matching"][4, 1, 0])
    with (tmp_path / "loss_by_position.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["run", "training tokens", "token index", "loss (nats)"]
    losses = {(float(row[1]), float(row[2])): float(row[3]) for row in rows if row[0] == opened[0].name}
    assert losses[60 * 136, 17] == float(found["loss_by_position"].sel(snapshot=60, position=16))
    with_gap = [f["name"] for f in data["comparisons"] if "gap" in f["panels"][0]]
    assert with_gap == ["smeared_against_plain", "pooled_pca"]  # the two are on other tokens


def test_every_figure_is_asked_for_its_files(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(write, "save_figure", lambda figure, _runs, folder: asked.append((figure.name, folder)))
    write.write_report(runs, tmp_path)
    assert asked == [(f.name, tmp_path / "figures") for f in (*COMPARISONS, *MODEL_ANALYSIS, *BEHAVIOURS)]


def test_arrays_are_kept_once_and_come_back() -> None:
    store = ArrayStore()
    first = store.put(np.array([1.5, -2.0, np.nan]))
    assert store.put(np.array([1.5, -2.0, np.nan], np.float32)) == first
    second = store.put(np.array([0, 255, 7], np.uint8))
    assert (first, second, len(store.arrays)) == (0, 1, 2)
    np.testing.assert_array_equal(read_array(store.arrays[0]), np.array([1.5, -2, np.nan], np.float32))
    np.testing.assert_array_equal(read_array(store.arrays[1]), [0, 255, 7])


def test_report_analyzes_what_never_was(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "configure_jax", lambda _n: None)
    take = cli_analyze._take
    monkeypatch.setattr(cli_analyze, "_take", lambda run, console: take(run, console, only=["icl"]))
    monkeypatch.setattr(write, "save_figure", lambda *_figure: [])
    hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    assert run_cli(["report", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"no analysis yet of {tmp_path / 'run'}: taking it first"
    assert out[-1] == f"the page: {tmp_path / 'out' / 'index.html'}"
    assert page_json(tmp_path / "out" / "index.html")["runs"][0]["name"] == "run"
    (tmp_path / "file").write_text("")
    assert run_cli(["report", str(tmp_path / "run"), "--out", str(tmp_path / "file" / "x")]) == 2
    assert f"{tmp_path / 'file'} is a file: must be a folder" in capsys.readouterr().err
    assert run_cli(["report", "gs://bucket/run"]) == 2
    assert "--out is missing: gs://bucket/run is a bucket" in capsys.readouterr().err
    assert run_cli(["report", str(tmp_path / "none")]) == 2
    assert "no such run directory" in capsys.readouterr().err


def test_python_callers_get_the_analysis_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an analysis that holds little the page still comes, and says what is missing."""
    monkeypatch.setattr(write, "save_figure", lambda *_figure: [])
    monkeypatch.setattr(write, "analyze", partial(analyze, only=["icl"], snapshots=2))
    hand_built_run(tmp_path / "run", n_ctx=17, vocab_size=11)
    page = write.write_report([str(tmp_path / "run")], tmp_path / "out")
    assert page == tmp_path / "out" / "index.html"
    data = page_json(page)
    assert "chart" in panel(data, "icl_score")
    gap = "not taken: not asked for (icl-jax analyze RUN --only head_scores takes it)"
    assert panel(data, "prefix_matching")["gap"] == gap
    assert {row["finding"] for row in data["verdicts"]} == {"not tested"}
