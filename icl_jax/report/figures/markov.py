"""Markov chains in context (Edelman et al. 2024): which strategy the model is nearest to, and its attention."""

from icl_jax.report.chart import Axis, Chart, Series
from icl_jax.report.figures.figure import SHARE, TOKENS, RunFigure, level
from icl_jax.report.reported_run import ReportedRun

_NAMES = ("uniform", "unigram", "bigram")


def strategy_names(n: int) -> list[str]:
    """Names on the axis `strategy`: uniform, unigram, bigram, 3-gram and so on."""
    return [_NAMES[i] if i < len(_NAMES) else f"{i}-gram" for i in range(n)]


def _charts(run: ReportedRun) -> list[Chart]:
    data, names = run.data, strategy_names(run.data.sizes["strategy"])
    losses = [Series(label="model", x=run.tokens, y=data["markov_loss"].values, colour=6)]
    losses += [
        level(run, float(data["strategy_loss"].values[0, i]), label=name, colour=i, text=name)
        for i, name in enumerate(names)
    ]
    divergences = [
        Series(label=name, x=run.tokens, y=data["strategy_kl"].values[:, i], colour=i) for i, name in enumerate(names)
    ]
    kl = Axis(label="KL(strategy ‖ model) (nats)", is_log=True)
    return [
        Chart(title="loss; dashed: of each strategy", x=TOKENS, y=Axis(label="nats"), series=losses, bands=run.bands),
        Chart(title="distance from each strategy", x=TOKENS, y=kl, series=divergences, bands=run.bands, legend=True),
        _attention(run),
    ]


def _attention(run: ReportedRun) -> Chart:
    data = run.data
    previous = data["previous_token"].values[:, 0]
    best = int(previous[-1].argmax())
    label = f"to the token before, head 0.{best}"
    series = [Series(label=label, x=run.tokens, y=previous[:, best], colour=3)]
    match = data["match_attention"].values[:, 1:].reshape(len(run.tokens), -1)
    if match.size:
        i = int(match[-1].argmax())
        layer, head = divmod(i, data.sizes["head"])
        label = f"to what followed the same before, head {layer + 1}.{head}"
        series.append(Series(label=label, x=run.tokens, y=match[:, i], colour=4))
        chance = float(data["match_attention_chance"][0])
        series.append(level(run, chance, label="uniform attention", colour=4, in_legend=False))
    axis = Axis(label="attention", range=SHARE)
    return Chart(title="attention; dashed: uniform", x=TOKENS, y=axis, series=series, bands=run.bands, legend=True)


FIGURE = RunFigure(
    name="markov",
    title="Markov chains in context",
    shows="Loss of the model beside that of each strategy, its distance from each, and attention of its best heads.",
    look_for="The model goes from one strategy to the next; to the bigram's as a head begins to attend to the token "
    "before and one of the next layer to what followed the same state.",
    source="markov",
    needs=("strategy_kl", "previous_token"),
    chart=_charts,
)
