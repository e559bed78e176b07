"""A Mathematical Framework, composition diagram: which heads read what which others wrote, through their keys."""

import numpy as np

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import RunFigure
from icl_jax.report.reported_run import ReportedRun, signed

# Pairs of random heads go above it by chance in one of 700.
_MIN_Z = 3.0
_MAX_EDGES = 24
_WIDEST = 5.0


def _pairs(run: ReportedRun) -> list[tuple[float, tuple[int, int], tuple[int, int]]]:
    """The pairs above the baseline: z, earlier head, later head; the strongest first."""
    z = run.last("k_composition_z")
    order = np.argsort(-np.nan_to_num(z, nan=-np.inf), axis=None)[:_MAX_EDGES]
    pairs = zip(*np.unravel_index(order, z.shape), strict=True)
    found = [(float(z[a, b, c, d]), (int(a), int(b)), (int(c), int(d))) for a, b, c, d in pairs]
    return [pair for pair in found if pair[0] >= _MIN_Z]


def _chart(run: ReportedRun) -> Chart:
    pairs, model = _pairs(run), run.config.model
    strongest = max((z for z, _, _ in pairs), default=1.0)
    series = [
        Series(
            label=f"{src[0]}.{src[1]} → {dst[0]}.{dst[1]}: {signed(z, 1)} sd", x=np.array([src[1], dst[1]]),
            y=np.array([src[0], dst[0]]), width=max(0.5, _WIDEST * z / strongest), colour=5,
        )
        for z, src, dst in reversed(pairs)
    ]  # fmt: skip
    for layer, head in run.heads:
        series.append(
            Series(
                label=f"head {layer}.{head}", x=np.array([head]), y=np.array([layer]), dots=True, head=(layer, head),
                role=run.roles[layer, head], text=f"{layer}.{head}", node=True,
            )
        )  # fmt: skip
    return Chart(
        x=Axis(label="head", is_count=True, range=(-0.5, model.n_heads - 0.5)),
        y=Axis(label="layer", is_count=True, range=(-0.4, model.n_layers - 0.6)), series=series,
    )  # fmt: skip


def _ours(run: ReportedRun) -> str:
    z = run.last("k_composition_z")
    defined = np.isfinite(z)
    above = int(np.sum(z[defined] >= _MIN_Z))
    best = np.unravel_index(np.nanargmax(z), z.shape)
    return (
        f"{above} of {int(defined.sum())} pairs {_MIN_Z:.0f} sd or more above random heads; strongest "
        f"{best[0]}.{best[1]} → {best[2]}.{best[3]} at {signed(z[best], 1)} sd"
    )


FIGURE = RunFigure(
    name="composition",
    title="Composition diagram",
    shows=f"K-composition between heads at the end of training: lines join pairs {_MIN_Z:.0f} or more standard "
    "deviations above random heads, thicker where it is stronger.",
    look_for="Lines from a previous-token head (blue) to the induction heads (vermilion) and little else.",
    paper="most pairs lie below the baseline of random matrices; the induction heads compose with a previous-token "
    "head",
    needs=("k_composition_z",),
    chart=_chart,
    ours=_ours,
)
