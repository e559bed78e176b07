"""Several models in one plane, as far as they are measured on the same tokens."""

from pathlib import Path

import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.report.chart import Gap
from icl_jax.report.figures.pooled_pca import FIGURE
from tests.report.made_runs import made_run, no_change, window

MODEL = ModelConfig(n_layers=1, d_model=6, n_heads=2, n_ctx=17, vocab_size=11)


def test_models_on_the_same_tokens_share_their_axes(tmp_path: Path) -> None:
    u = np.linspace(0, 1, 11)[:, None]
    there, aside = np.array([-3.0, -3, 0, 0]), np.array([0.0, 0, -1, -1])
    paths = {"plain": 4 + u * there, "turning": 4 + u * there + np.maximum(u - 0.5, 0) * aside}
    runs = [
        made_run(
            tmp_path / name,
            MODEL,
            {
                "token_loss": (("snapshot", "token"), loss),
                "token_id": (("token",), [1, 2, 3, 4]),
                **(window(40, 60) if name == "turning" else no_change()),
            },
        )
        for name, loss in paths.items()
    ]
    (panel,) = FIGURE.panels(runs)
    plain, turning, thick = panel.chart.series
    assert [series.label for series in panel.chart.series] == ["plain", "turning", "turning: phase change"]
    # In one plane distances are those of the vectors themselves, between models too.
    distance = np.hypot(plain.x[-1] - turning.x[-1], plain.y[-1] - turning.y[-1])
    np.testing.assert_allclose(distance, np.linalg.norm(paths["plain"][-1] - paths["turning"][-1]))
    np.testing.assert_allclose((plain.x[0], plain.y[0]), (turning.x[0], turning.y[0]), atol=1e-9)
    assert thick.width > turning.width
    other = made_run(tmp_path / "other", MODEL, {
        "token_loss": (("snapshot", "token"), paths["plain"]), "token_id": (("token",), [4, 3, 2, 1]), **no_change(),
    })  # fmt: skip
    (alone,) = FIGURE.panels([runs[0], other])
    assert isinstance(alone.chart, Gap)
