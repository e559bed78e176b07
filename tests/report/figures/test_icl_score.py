"""The two ICL scores: the one of single tokens stands with its standard error, or not at all."""

from pathlib import Path

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.report.figures.icl_score import FIGURE
from tests.report.made_runs import made_run, no_change

MODEL = ModelConfig(n_layers=1, d_model=6, n_heads=2, n_ctx=17, vocab_size=11)
ATTRS = {"icl_early": 4, "icl_late": 17, "icl_early_window": [1, 2], "icl_late_window": [15, 17]}


def test_single_tokens_are_shown_with_their_error_or_not_at_all(tmp_path: Path) -> None:
    for error, shown in ((0.1, True), (0.46, False)):
        variables = {
            name: (("snapshot",), np.full(11, value))
            for name, value in (
                ("icl_windowed", -0.3),
                ("icl_sem", 0.02),
                ("icl_score", -0.4),
                ("icl_score_sem", error),
            )
        }
        run = made_run(tmp_path / str(error), MODEL, variables | no_change())
        run.data.attrs.update(ATTRS)
        (panel,) = FIGURE.panels([run])
        series = panel.chart.series
        assert [s.label for s in series] == ["tokens 15 to 17 minus 1 to 2", "token 17 minus 4"][: 1 + shown]
        assert ("not shown, standard error 0.46 nats" in panel.ours) != shown
        if shown:
            np.testing.assert_allclose(series[1].high - series[1].low, 2 * error)
