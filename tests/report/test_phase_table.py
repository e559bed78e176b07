"""The lines of `icl-jax analyze --show`, of analyses written by hand."""

import numpy as np
import xarray as xr

from icl_jax.report.phase_table import phase_table
from tests.report.made_runs import no_change, open_change, window


def _shown(variables: dict) -> str:
    steps = np.arange(0, 101, 10)
    scores = {
        name: (("snapshot",), np.linspace(0, -1, 11))
        for name in ("icl_windowed", "icl_score", "icl_sem", "icl_score_sem")
    }
    coords = {"snapshot": steps, "tokens": ("snapshot", 1000 * steps)}
    attrs = {"run_id": "abc", "held_out_rows": 4, "absent": "{}"}
    return "\n".join(phase_table(xr.Dataset(scores | variables, coords=coords, attrs=attrs)))


def test_a_change_none_and_one_that_goes_on() -> None:
    found = _shown(window(40, 60))
    assert "phase change                 0.04 M to 0.06 M tokens, -1.00 nats (100 % of the run's change)" in found
    assert "start 0.035 M to 0.045 M, end 0.055 M to 0.065 M, size -1.10 to -0.90 nats" in found
    assert "before (step 40) -0.400 ±" in found
    assert "phase change                 no change found (p = 0.5)" in _shown(no_change())
    still = _shown(open_change(70))
    assert "phase change                 from 0.07 M tokens on, still going on at the end, -0.50 nats" in still
    assert "inf" not in still


def test_heads_that_match_in_their_own_corpus_are_named_by_label() -> None:
    matching = np.zeros((11, 2, 2, 2))
    matching[-1, 0, 1, 0], matching[-1, 1, 0, 1] = 0.9, 0.8
    labels = {
        "label": (("label",), np.array(["name", "sum"])),
        "label_prob": (("snapshot", "label"), np.tile([0.9, 0.3], (11, 1))),
        "label_matching": (("snapshot", "label", "layer", "head"), matching),
    }
    (line,) = [line for line in _shown(no_change() | labels).splitlines() if "own corpus" in line]
    assert "1.0 0.90 (name)" in line
    assert "sum" not in line
