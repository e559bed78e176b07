"""Everything that the page shows, as one JSON-ready object; numbers stand apart, in an ArrayStore."""

import base64
import datetime
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from icl_jax import __version__
from icl_jax.config import UserError
from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.report.answers import SHOWN_EXAMPLES, answers
from icl_jax.report.behaviours import behaviours
from icl_jax.report.chart import Axis, Chart, Gap, Series, Value
from icl_jax.report.figures.figure import Drawable
from icl_jax.report.figures.over_members import ReportedMembers
from icl_jax.report.figures.table import BEHAVIOURS, COMPARISONS, MODEL_ANALYSIS
from icl_jax.report.members import members_figures
from icl_jax.report.page.arrays import ArrayStore
from icl_jax.report.page.members import over_members
from icl_jax.report.page.moments import moments
from icl_jax.report.page.token_losses import token_losses
from icl_jax.report.page.token_text import TokenText
from icl_jax.report.reported_run import ReportedRun, millions, signed
from icl_jax.report.seeds import choose, group_by_config
from icl_jax.report.verdicts import verdicts
from icl_jax.telling import shortened

_SHORT_NAME = 40


def page_data(runs: list[ReportedRun], members: Sequence[ReportedMembers] = ()) -> dict[str, Any]:
    """The object that page.js draws. Its `arrays` are those of `ArrayStore`; an integer elsewhere names one of them."""
    store = ArrayStore()
    group_of = {run.name: i for i, group in enumerate(group_by_config(runs)) for run in group.runs}
    every, runs = runs, choose(runs)
    texts = [TokenText(run) for run in runs]
    return {
        "title": _title(every, members),
        "made": f"icl_jax {__version__}, {datetime.datetime.now(datetime.UTC):%d %B %Y}",
        "threshold": HEAD_THRESHOLD,
        "runs": [_run(run, group_of[run.name]) for run in runs],
        "others": [_run(run, group_of[run.name]) for run in every if run.name not in {run.name for run in runs}],
        "over_members": over_members(members, runs, store) if members else None,
        "members_figures": [_figure(figure, list(members), store) for figure in members_figures(members)]
        if members
        else [],
        "comparisons": [_figure(figure, every, store) for figure in COMPARISONS],
        "model_analysis": [_figure(figure, runs, store) for figure in MODEL_ANALYSIS if figure.is_shown(runs)],
        "behaviour_figures": [_figure(figure, runs, store) for figure in BEHAVIOURS if figure.is_shown(runs)],
        "behaviours": [asdict(row) for row in behaviours(every)],
        "answers": [asdict(row) for row in answers(every)],
        "answer_examples": list(SHOWN_EXAMPLES),
        "verdicts": [asdict(verdict) for verdict in verdicts(every)],
        "moments": [moments(run, store, text) for run, text in zip(runs, texts, strict=True)],
        "token_losses": [
            {"gap": found.why} if isinstance(found := token_losses(run, store, text), Gap) else found
            for run, text in zip(runs, texts, strict=True)
        ],
        "arrays": store.arrays,
    }


def _title(runs: list[ReportedRun], members: Sequence[ReportedMembers]) -> str:
    if len(members) == 1 and all(run.run.index is not None for run in runs):
        return f"{members[0].name}, {members[0].data.sizes['member']} members"
    return runs[0].name if len(runs) == 1 else f"{len(runs)} runs"


def _run(run: ReportedRun, group: int) -> dict[str, Any]:
    return {
        "name": run.name,
        "short": shortened(run.name, _SHORT_NAME),
        "size": run.size,
        "details": run.details,
        "seeds": run.seeds,
        "group": group,
        "heads": [[layer, head, run.roles[layer, head]] for layer, head in run.heads],
        "changes": _changes(run),
        "heads_form": {None: "not scored", True: "yes", False: "none"}[run.forms_induction],
        "n_snapshots": len(run.tokens),
        "audit": _audit(run),
    }


def _audit(run: ReportedRun) -> str | None:
    """audit.png as the page holds it, where `icl-jax audit` has drawn it. Raises UserError if it is damaged."""
    path = run.run.path / "audit.png"
    if not path.exists():
        return None
    picture = path.read_bytes()
    try:
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            image.verify()  # the checksums of its parts
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as image:
            image.load()  # to its end
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: a damaged picture; icl-jax audit draws it anew") from error
    return base64.b64encode(picture).decode()


def _changes(run: ReportedRun) -> list[str]:
    """Each phase change in words, with the intervals of its ends and its size; without one, why."""
    if run.phase is None or not run.phase.changes:
        return [run.phase_words]
    found = []
    for change in run.phase.changes:
        ends = [(change.start, change.start_interval), (change.end, change.end_interval)][: 1 if change.is_open else 2]
        where = " to ".join(
            f"{millions(at)} ({millions(low)} to {'the end' if np.isinf(high) else millions(high)})"
            for at, (low, high) in ends
        )
        part = f"{signed(change.size)} nats, {100 * change.share:.0f} % of the run's change"
        found.append(f"{where}{', still going on at the end' if change.is_open else ''}; {part}")
    return found


def _figure(figure: Drawable, runs: list[Any], store: ArrayStore) -> dict[str, Any]:
    panels = figure.panels(runs)
    return {
        "name": figure.name,
        "title": figure.title,
        "shows": figure.shows,
        "look_for": figure.look_for,
        "paper": figure.paper,
        "panels": [
            {
                "run": None if panel.run is None else runs.index(panel.run),
                **_drawn(panel.chart, store),
                "ours": panel.ours,
            }
            for panel in panels
        ],
    }


def _drawn(found: Chart | Gap | Value, store: ArrayStore) -> dict[str, Any]:
    if isinstance(found, Gap):
        return {"gap": found.why}
    return {"value": found.text} if isinstance(found, Value) else {"chart": _chart(found, store)}


def _chart(chart: Chart, store: ArrayStore) -> dict[str, Any]:
    found: dict[str, Any] = {
        "x": _axis(chart.x),
        "y": _axis(chart.y),
        "bands": [asdict(band) for band in chart.bands],
        **({"intervened": [asdict(stretch) for stretch in chart.intervened]} if chart.intervened else {}),
        "zero": chart.zero,
        "title": chart.title,
        "wide": chart.wide,
    }
    if chart.heat is not None:
        heat = chart.heat
        found["heat"] = {
            "x": store.put(heat.x), "y": store.put(heat.y), "z": store.put(heat.z), "label": heat.label,
            "diverging": heat.diverging, "range": heat.range, "heads": heat.heads,
        }  # fmt: skip
    found["series"] = [_series(series, store) for series in chart.series]
    found["legend"] = chart.legend
    return found


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "label": axis.label,
        "log": axis.is_log,
        "tokens": axis.is_tokens,
        "count": axis.is_count,
        "range": axis.range,
        "names": axis.names,
    }


def _series(series: Series, store: ArrayStore) -> dict[str, Any]:
    return {
        "label": shortened(series.label, 2 * _SHORT_NAME),
        "model": series.model,
        "x": store.put(series.x),
        "y": store.put(series.y),
        "low": None if series.low is None else store.put(series.low),
        "high": None if series.high is None else store.put(series.high),
        "dots": series.dots,
        "bars": series.bars,
        "node": series.node,
        "in_legend": series.in_legend,
        "head": series.head,
        "member": series.member,
        "role": series.role,
        "colour": series.colour,
        "width": series.width,
        "dashed": series.dashed,
        "text": series.text,
    }
