"""Held-out rows as text, each token with its loss before and after the phase change and at moments between."""

from typing import Any

import numpy as np

from icl_jax.report.chart import Gap
from icl_jax.report.page.arrays import ArrayStore
from icl_jax.report.page.moments import moment_indexes
from icl_jax.report.page.token_text import TokenText
from icl_jax.report.reported_run import ReportedRun

_MAX_POSITIONS = 256


def token_losses(run: ReportedRun, store: ArrayStore, text: TokenText) -> dict[str, Any] | Gap:
    """Rows for the prompt picker: texts, the loss of each text at some snapshots, the labels that it carries."""
    if (gap := run.gap("example_loss", "example_id")) is not None:
        return gap
    steps = list(run.data["snapshot"].values)
    window = (0, len(steps) - 1) if run.window is None else tuple(steps.index(step) for step in run.window)
    at = moment_indexes(len(steps), (window[0], window[1]))
    loss = run.data["example_loss"].values[at, :, :_MAX_POSITIONS]
    rows = [
        {
            "texts": text.of(ids[:_MAX_POSITIONS]),
            "loss": store.put(loss[:, i]),
            "labels": _labels(run, i, loss.shape[2]),
        }
        for i, ids in enumerate(run.data["example_id"].values)
    ]
    return {
        "at": [int(i) for i in at],
        "tokens": store.put(run.tokens[at]),
        "before": int(np.searchsorted(at, window[0])),
        "after": int(np.searchsorted(at, window[1])),
        "rows": rows,
        "label_names": [str(name) for name in run.data["label"].values] if "label" in run.data.coords else [],
    }


def _labels(run: ReportedRun, row: int, n_positions: int) -> list[list[int]]:
    """[position, number of its label] of each labelled token of a row."""
    if not run.has("labelled_row", "labelled_position", "labelled_label"):
        return []
    here = run.data["labelled_row"].values == row
    positions, labels = run.data["labelled_position"].values[here], run.data["labelled_label"].values[here]
    return [[int(p), int(n)] for p, n in zip(positions, labels, strict=True) if p < n_positions]
