"""The lines of `icl-jax analyze --show`, of analyses written by hand."""

import numpy as np
import xarray as xr

from icl_jax.maths.change_point import Change
from icl_jax.maths.finding import Finding, arrays_of
from icl_jax.measures.curves import SCORES
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


def test_the_score_at_single_tokens_is_not_shown_where_it_says_nothing() -> None:
    for error, is_shown in ((0.1, True), (0.46, False)):
        table = _shown(no_change() | {"icl_score_sem": (("snapshot",), np.linspace(error, 0.01, 11))})
        assert ("not shown: at single tokens its standard error is up to 0.46" in table) != is_shown
        assert ("icl_score (nats)             a tenth of the run (step 10) -0.100 ±" in table) == is_shown
        assert not any(word in table for word in ("before (", "after ("))


def test_the_score_stands_beside_that_of_the_corpus_where_it_is_known() -> None:
    over = np.linspace(0.417, -0.443, 11)
    floor = {"floor_icl": ((), -0.417), "floor_icl_sem": ((), 0.015)}
    floor |= {"icl_over_floor": (("snapshot",), over), "icl_over_floor_sem": (("snapshot",), np.full(11, 0.02))}
    line = "of the corpus itself (nats)  -0.417 ±0.015, the end of run -0.443 ±0.020 from it"
    assert line in _shown(no_change() | floor)
    assert "of the corpus" not in _shown(no_change())


def test_changes_of_the_best_heads_and_of_the_loss() -> None:
    scores = np.zeros((11, 2, 2))
    scores[-1, 1, 0] = 0.9
    finding = Finding((Change(4e4, 6e4, 0.9, 1.0, (0, 0), (0, 0), (0, 0), (0, 0)),), 1e-9)
    # 0.004 is above a twelfth of 0.03: it is no change for want of evidence, not of size.
    all_heads = [finding if i == 2 else Finding((), 0.004 if i >= 8 else 1.0) for i in range(12)]
    heads = {name: values.reshape(3, 2, 2, *values.shape[1:]) for name, values in arrays_of(all_heads).items()}
    dims = ("score", "layer", "head", "change", "bound")
    found = {f"head_change_{name}": (dims[: values.ndim], values) for name, values in heads.items()}
    found |= dict.fromkeys(SCORES, (("snapshot", "layer", "head"), scores))
    loss = {name: values[0] for name, values in arrays_of([Finding((), 1e-5)]).items()}
    found |= {f"loss_change_{name}": (dims[3 : 3 + values.ndim], values) for name, values in loss.items()}
    lines = _shown(no_change() | found).splitlines()
    assert "  prefix matching of 1.0       0.04 M to 0.06 M tokens, +0.90 (100 % of the run's change)" in lines
    assert "  copying of 1.0               no change found (p = 0.004)" in lines
    # A p-value that is small, and still no change: why is said.
    assert "  held-out loss                no change found (p = 1e-05, but no step is large enough or out of" in (
        next(line for line in lines if "held-out loss" in line)
    )


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
