"""Each curve beside what was found in it: the window, and the fit without and with it."""

from pathlib import Path

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.maths.finding import Finding, arrays_of
from icl_jax.report.chart import Chart
from icl_jax.report.figures.changes import FIGURE
from tests.report.made_runs import made_run, no_change, window

MODEL = ModelConfig(n_layers=1, d_model=6, n_heads=2, n_ctx=17, vocab_size=11)


def test_a_chart_for_each_curve_with_points_fit_and_window(tmp_path: Path) -> None:
    u = np.linspace(0, 1, 11)
    icl = -1 / (1 + 9 ** -((2 * u - 1) / 0.2))
    prob = np.stack([u, np.full(11, np.nan)], axis=1)
    labels = {"label": (("label",), ["name", "nothing"]), "label_prob": (("snapshot", "label"), prob)}
    dims = ("label", "change", "bound")
    for name, values in arrays_of([Finding((), 0.5), Finding((), np.nan)]).items():
        labels[f"label_change_{name}"] = (dims[: values.ndim], values)
    variables = {"icl_windowed": (("snapshot",), icl), **labels}
    run = made_run(tmp_path / "found", MODEL, variables | window(40, 60))
    score, probability = (panel.chart for panel in FIGURE.panels([run]))
    assert isinstance(score, Chart)
    assert isinstance(probability, Chart)
    assert (score.title, score.y.label) == ("one change", "ICL score (nats)")
    assert [(band.start, band.end) for band in score.bands] == [(4e4, 6e4)]
    measured, smooth, fitted = score.series
    np.testing.assert_array_equal(measured.y, icl)
    assert np.abs(fitted.y - icl).max() < 0.01
    assert np.abs(smooth.y - icl).max() > 0.1
    # A label without tokens has no chart, one without a change the smooth curve alone.
    assert (probability.title, probability.y.label) == ("no change", "p(name)")
    assert [series.label for series in probability.series] == ["measured", "smooth curve alone"]
    np.testing.assert_allclose(probability.series[1].y, u, atol=1e-6)
    none = made_run(tmp_path / "none", MODEL, {"icl_windowed": (("snapshot",), icl)} | no_change())
    (panel,) = FIGURE.panels([none])
    assert panel.chart.bands == ()
