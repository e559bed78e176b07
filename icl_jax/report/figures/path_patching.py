"""Argument 3 by patching: what the heads of one layer tell those of a later one through queries, keys and values."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun, signed

_COLOURS = {"k": 1, "q": 0, "v": 2}
_NAMES = {"k": "keys", "q": "queries", "v": "values"}
_EFFECT = "change of the loss of repeats (nats)"
# Standard errors on either side of a 90 % interval.
_HALF_WIDTH = 1.645


def _layers(run: ReportedRun) -> tuple[int, int]:
    """The layers whose path through keys does most at the end."""
    effect = run.last("k_layer_effect")
    src, dst = np.unravel_index(np.nanargmax(effect), effect.shape)
    return int(src), int(dst)


def _chart(run: ReportedRun) -> list[Chart]:
    (src, dst), n = _layers(run), len(run.data["selected_tokens"])
    tokens = np.zeros(1) if n == 1 else run.data["selected_tokens"].values
    series = []
    for i, (letter, name) in enumerate(_NAMES.items()):
        y, error = (run.data[f"{letter}_layer_effect{of}"].values[:, src, dst] for of in ("", "_sem"))
        spread = _HALF_WIDTH * error
        series.append(
            Series(
                label=f"layer {src} to layer {dst} through {name}", x=np.array([i]) if n == 1 else tokens, y=y,
                low=y - spread, high=y + spread, colour=_COLOURS[letter], bars=n == 1,
            )
        )  # fmt: skip
    x = Axis(label="through", names=tuple(_NAMES.values())) if n == 1 else TOKENS
    if n > 1:
        whole = run.data["path_all_effect"].values
        series.append(Series(label="rows without repeats", x=tokens, y=whole, colour=6, dashed=True))
    charts = [Chart(x=x, y=Axis(label=_EFFECT), series=series, bands=run.bands, legend=True, zero=True)]
    if run.has("k_path_attribution"):
        charts.append(_against_attribution(run))
    return charts


def _against_attribution(run: ReportedRun) -> Chart:
    """A dot for each pair of heads, at the end."""
    series = []
    for letter, name in _NAMES.items():
        exact, cheap = (run.last(f"{letter}_path_{of}") for of in ("effect", "attribution"))
        there = np.isfinite(exact)
        series.append(
            Series(label=f"through {name}", x=cheap[there], y=exact[there], dots=True, colour=_COLOURS[letter])
        )
    return Chart(
        title="head by head, beside the gradient", x=Axis(label="attributed (nats)"), y=Axis(label="exact (nats)"),
        series=series, legend=True, zero=True,
    )  # fmt: skip


def _ours(run: ReportedRun) -> str:
    src, dst = _layers(run)
    parts = [
        f"{name} {signed(float(run.last(f'{letter}_layer_effect')[src, dst]))} ± "
        f"{_HALF_WIDTH * float(run.last(f'{letter}_layer_effect_sem')[src, dst]):.2f}"
        for letter, name in _NAMES.items()
    ]
    return f"at the end through {', '.join(parts)} nats, of {signed(float(run.last('path_all_effect')))} in all"


FIGURE = RunFigure(
    name="path_patching",
    title="What a layer tells the next, by path patching",
    shows="Loss of random repeats where the queries, keys or values of a layer's heads are told what an earlier "
    "layer's heads say on rows without repeats, all else as it is; less the loss as it is, with its 90 % interval.",
    look_for="Keys that cost nearly all that repeats are worth, queries and values that cost nothing: induction heads "
    "are fed through their keys.",
    needs=("k_layer_effect", "q_layer_effect", "v_layer_effect", "path_all_effect", "selected_tokens"),
    on_request=True,
    chart=_chart,
    ours=_ours,
)
