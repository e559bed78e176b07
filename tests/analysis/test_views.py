"""How runs, texts, charts and configs show themselves in a notebook: whatever their names hold, they are no markup."""

from pathlib import Path

import numpy as np
import pytest

import icl_jax
from icl_jax.analysis.probe import Look, Probe
from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import Config, DataConfig, UserError
from icl_jax.maths.logit_attribution import LogitAttribution
from icl_jax.report.chart import Axis, Chart, Gap, Series
from tests.analysis.small_runs import hand_built_run

MARKUP = '<script>"&'


def test_a_run_shows_what_it_is_and_its_heads(tmp_path: Path) -> None:
    made = hand_built_run(tmp_path / "<b>run", n_ctx=17, vocab_size=11)
    run = icl_jax.open_run(str(made.path))
    shown = run._repr_html_()
    assert "<b>run" not in shown.partition("<table>")[0].removeprefix("<b>")
    assert "&lt;b&gt;run" in shown
    assert "2 layers of 1 heads" in shown
    assert "<svg" not in shown  # no probes were taken
    analyze(made, only=["head_scores"])
    heads = run.heads()
    assert heads.index.names == ["layer", "head"]
    assert heads.loc[(1, 0), "prefix_matching"] == pytest.approx(1, abs=1e-3)
    assert run.heads(0).loc[(0, 0), "previous_token"] == pytest.approx(1, abs=1e-3)
    with pytest.raises(UserError, match="step = 7: was not analyzed; must be one of"):
        run.heads(7)


def test_tokens_and_names_are_escaped() -> None:
    attribution = LogitAttribution(*(np.zeros((1, 1, 1)) for _ in LogitAttribution._fields))._replace(
        loss_nats=np.array([1.25]), heads=np.array([[[0.0, 2.0]]])
    )
    probe = Probe(np.array([0, 1]), ("BOS", MARKUP), (Look(7, np.array([[0.2, 0.8], [0.1, 0.9]]), attribution),))
    shown = probe._repr_html_()
    assert MARKUP not in shown
    assert shown.count("&lt;script&gt;&quot;&amp;") == 3
    assert "<td>1.25</td>" in shown
    assert "<td>0.1</td>" in shown
    assert MARKUP not in Config(data=DataConfig(source=f"text:{MARKUP}"))._repr_html_()
    assert MARKUP not in Gap(MARKUP)._repr_html_()
    line = Series(label=MARKUP, x=np.arange(3), y=np.arange(3.0))
    picture = Chart(x=Axis(label=MARKUP), y=Axis(label=MARKUP), series=[line])._repr_html_()
    assert "data:image/png;base64," in picture
    assert MARKUP not in picture
