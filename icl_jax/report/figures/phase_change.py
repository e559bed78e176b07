"""The phase change in one picture: the ICL score, the heads, and the loss by position before and after."""

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import TOKENS, ComparisonFigure, change_stretch, log_positions
from icl_jax.report.reported_run import ReportedRun, millions
from icl_jax.report.seeds import choose


def _charts(runs: list[ReportedRun]) -> list[Chart]:
    runs = choose(runs)
    score, heads = [], []
    for colour, run in enumerate(runs):
        if run.is_single:
            continue
        icl = run.data["icl_windowed"].values
        tokens, training = run.training_loss[0], run.training_icl
        label = f"{run.name}: training batches"
        if len(tokens):
            score.append(Series(label=label, x=tokens, y=training, colour=colour, width=0.8, in_legend=False))
        score += [
            Series(label=run.name, x=run.tokens, y=icl, colour=colour, model=colour, width=2),
            *change_stretch(run, icl, colour),
        ]
        heads += _heads(run, colour)
    charts = []
    if score:
        title, axis = "thin: training batches; thickest: the phase change", Axis(label="ICL score (nats)")
        charts.append(Chart(title=title, x=TOKENS, y=axis, series=score, wide=True, zero=True, legend=True))
    if heads:
        axis = Axis(label="attention of the best head")
        title = "prefix matching; thin, dashed: previous token, layer 0"
        charts.append(Chart(title=title, x=TOKENS, y=axis, series=heads, wide=True))
    losses = [run.data["loss_by_position"].values[list(run.before_after)] for run in runs]
    span = (float(min(loss.min() for loss in losses)), float(max(loss.max() for loss in losses)))
    axis = Axis(label="held-out loss (nats)", range=(span[0] - 0.1, span[1] + 0.1))
    return charts + [_positions(run, axis) for run in runs]


def _heads(run: ReportedRun, colour: int) -> list[Series]:
    """Prefix matching of the head that is best at the end, and previous token of layer 0's best."""
    if not run.has("prefix_matching", "previous_token"):
        return []
    matching = run.data["prefix_matching"].values.reshape(len(run.tokens), -1)
    previous = run.data["previous_token"].values[:, 0]
    matching, previous = (scores[:, scores[-1].argmax()] for scores in (matching, previous))
    return [
        Series(label=f"{run.name}: prefix matching", x=run.tokens, y=matching, colour=colour, model=colour, width=2),
        Series(label=f"{run.name}: previous token", x=run.tokens, y=previous, colour=colour, width=1, dashed=True),
        *change_stretch(run, matching, colour),
    ]


def _positions(run: ReportedRun, y: Axis) -> Chart:
    loss = run.data["loss_by_position"].values
    at = log_positions(loss.shape[1])
    if run.is_single:
        only = Series(label="loss", x=at + 1.0, y=loss[0, at], colour=1)
        return Chart(title=run.name, x=Axis(label="token index", is_log=True), y=y, series=[only])
    series = [
        Series(label=f"{word}: {millions(run.tokens[i])} tokens", x=at + 1.0, y=loss[i, at], colour=colour)
        for i, word, colour in zip(run.before_after, ("before", "after"), (6, 1), strict=True)
    ]
    return Chart(title=run.name, x=Axis(label="token index", is_log=True), y=y, series=series, legend=True)


FIGURE = ComparisonFigure(
    name="phase_change",
    title="The phase change",
    shows="Above, the windowed ICL score and the attention of the best heads over training; the thick stretches are "
    "phase changes. Below, the held-out loss by token index before the change and after it; without a change, at a "
    "tenth of the run and at its end.",
    look_for="In-context learning forms in one abrupt change, where induction heads can: only then do late tokens "
    "become cheaper than early ones.",
    needs=("icl_windowed", "loss_by_position"),
    chart=_charts,
)
