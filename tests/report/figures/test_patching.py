"""Figures of what is measured on request: patching, and sets of heads."""

from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.report.chart import Chart
from icl_jax.report.figures import activation_patching, markov, path_patching, prefix_matching, set_sizes
from icl_jax.report.left_out import left_out
from icl_jax.report.pictures import save_figure
from icl_jax.report.reported_run import ReportedRun
from tests.report.made_runs import made_run, no_change

MODEL = ModelConfig(n_layers=2, d_model=8, n_heads=2, n_ctx=17, vocab_size=24)
FIGURES = (path_patching.FIGURE, activation_patching.FIGURE, set_sizes.FIGURE)


def _run(path: Path, steps: list[int]) -> ReportedRun:
    n, layers = len(steps), ("selected", "layer_src", "layer_dst")
    effects = {"k": 3.5, "q": 0.02, "v": -0.1}
    pairs = ("selected", "layer_src", "head_src", "layer_dst", "head_dst")
    variables = dict(no_change())
    for letter, effect in effects.items():
        at = np.full((n, 2, 2), np.nan)
        at[:, 0, 1] = effect * np.linspace(0, 1, n) if n > 1 else effect
        variables |= {f"{letter}_layer_effect": (layers, at), f"{letter}_layer_effect_sem": (layers, 0.1 + 0 * at)}
        by_head = np.full((n, 2, 2, 2, 2), np.nan)
        by_head[:, 0, :, 1] = effect / 4
        variables |= {f"{letter}_path_effect": (pairs, by_head), f"{letter}_path_attribution": (pairs, by_head / 2)}
    heads = np.arange(4.0).reshape(2, 2)[None].repeat(n, 0)
    by_kind = np.array([1.2, 0.9, 0.1, 0.2])[None, None] * np.ones((n, 4, 4))
    kinds = ("selected", "set_share", "set_kind")
    variables |= {
        "path_all_effect": (("selected",), np.full(n, 4.0)),
        "patched_resid_effect": (("selected", "layer", "pair_position"), np.ones((n, 2, 16))),
        "patched_head_effect": (("selected", "layer", "head"), heads),
        "patched_head_effect_sem": (("selected", "layer", "head"), 0.5 * np.ones_like(heads)),
        "patched_all_effect": (("selected",), np.full(n, 4.0)),
        "size_icl_effect": (kinds, by_kind), "size_icl_effect_sem": (kinds, 0.1 * by_kind),
        "set_size": (("selected", "set_share"), np.ones((n, 4)) * [1, 1, 1, 2]),
    }  # fmt: skip
    return made_run(path, MODEL, variables, steps=steps)


@pytest.mark.parametrize("steps", [[0, 10, 100], [1]], ids=["over training", "one snapshot"])
def test_figures_show_what_was_measured(steps: list[int], tmp_path: Path) -> None:
    run = _run(tmp_path / "run", steps)
    paths, agreement = path_patching.FIGURE.panels([run])
    assert isinstance(paths.chart, Chart)
    assert [series.y[-1] for series in paths.chart.series[:3]] == [3.5, 0.02, -0.1]
    low = paths.chart.series[0].low
    assert low is not None
    assert low[-1] == pytest.approx(3.5 - 0.1645)
    assert agreement.ours == (
        "at the end through keys +3.50 ± 0.16, queries +0.02 ± 0.16, values −0.10 ± 0.16 nats, of +4.00 in all"
    )
    assert isinstance(agreement.chart, Chart)
    np.testing.assert_allclose(agreement.chart.series[0].x, [0.4375] * 4)
    np.testing.assert_allclose(agreement.chart.series[0].y, [0.875] * 4)
    resid, heads = activation_patching.FIGURE.panels([run])
    assert heads.ours == "most of one head +3.00 ± 0.50 nats (1.1), of +4.00 in all"
    (sizes,) = set_sizes.FIGURE.panels([run])
    assert sizes.ours.startswith("without 2 of each: induction heads +1.20, previous-token heads +0.90")
    for figure in FIGURES if run.is_single else ():
        assert all(path.stat().st_size for path in save_figure(figure, [run], tmp_path))
    assert isinstance(resid.chart, Chart)


def test_the_page_has_them_where_a_run_does(tmp_path: Path) -> None:
    plain, run = made_run(tmp_path / "plain", MODEL, dict(no_change())), _run(tmp_path / "run", [0, 10, 100])
    for figure in FIGURES:
        assert not figure.is_shown([plain])
        assert figure.is_shown([plain, run])
    assert prefix_matching.FIGURE.is_shown([plain])  # with the reason why it is not there
    assert not markov.FIGURE.is_shown([plain])
    assert not {figure.name for figure in FIGURES} & set(left_out("repeats", []))
