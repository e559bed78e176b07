"""What induction heads are worth on text: loss by whether the bigram stood before in the row, and of copies."""

import numpy as np

from icl_jax.measures.seen_bigrams import HEAD_SETS
from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import TOKENS, RunFigure
from icl_jax.report.reported_run import ReportedRun, signed

_SETS = ("intact", "without the induction heads", "without as many others of their layers")
_COLOURS = (0, 1, 6)
_LOSS = "loss (nats)"


def _groups(run: ReportedRun) -> dict[str, np.ndarray]:
    """[selected, set] losses by what is predicted."""
    copies = run.data["set_copy_loss"].values
    return {
        "bigram seen before": run.data["set_seen_bigram_loss"].values,
        "other tokens": run.data["set_new_bigram_loss"].values,
        **{f"copy {i + 1} of random tokens": copies[..., i] for i in range(1, copies.shape[-1])},
    }


def _chart(run: ReportedRun) -> Chart | list[Chart]:
    groups = _groups(run)
    if len(run.data["selected_tokens"]) == 1:
        x = np.arange(len(groups))
        series = [
            Series(label=name, x=x, y=np.array([loss[0, i] for loss in groups.values()]), bars=True, colour=colour)
            for i, (name, colour) in enumerate(zip(_SETS, _COLOURS, strict=True))
        ]
        names = tuple(name.removesuffix(" of random tokens") for name in groups)
        return Chart(x=Axis(label="tokens", names=names), y=Axis(label=_LOSS), series=series, wide=True, legend=True)
    tokens = run.data["selected_tokens"].values
    shown = [*list(groups)[:2], list(groups)[-1]]
    return [
        Chart(
            title=title, x=TOKENS, y=Axis(label=_LOSS), bands=run.bands, legend=title == shown[-1],
            series=[
                Series(label=name, x=tokens, y=groups[title][:, i], colour=colour)
                for i, (name, colour) in enumerate(zip(_SETS, _COLOURS, strict=True))
            ],
        )
        for title in shown
    ]  # fmt: skip


def _ours(run: ReportedRun) -> str:
    (seen, _), (new, _) = (set_costs(run, name) for name in ("set_seen_bigram_loss", "set_new_bigram_loss"))
    return f"at the end without the induction heads {signed(seen)} nats where it was seen, {signed(new)} elsewhere"


def set_costs(run: ReportedRun, variable: str) -> tuple[float, float]:
    """At the last of the snapshots: what the loss rises by without the induction heads, and without others."""
    intact, induction, others = (float(run.last(variable)[HEAD_SETS.index(name)]) for name in HEAD_SETS)
    return induction - intact, others - intact


FIGURE = RunFigure(
    name="seen_bigrams",
    title="What induction heads are worth on text",
    shows="Loss of tokens that stood earlier in the row after the same token, of all others, and of copies of random "
    "tokens: intact, without the heads of highest prefix matching together, and without as many others of the same "
    "layers.",
    look_for="Without the induction heads alone the loss rises, and only where there is something to copy.",
    needs=("set_seen_bigram_loss", "set_new_bigram_loss", "set_copy_loss", "selected_tokens"),
    chart=_chart,
    ours=_ours,
)
