"""The tables that a suite ends with, of analyses written by hand."""

import csv
from pathlib import Path

import numpy as np
from etils import epath
from rich.table import Table

from icl_jax.analysis.dataset import load_dataset, save_dataset
from icl_jax.config import ModelConfig
from icl_jax.maths.change_point import Change
from icl_jax.maths.finding import Finding
from icl_jax.measures.table import TABLE
from icl_jax.report.changes import window_words
from icl_jax.report.left_out import left_out
from icl_jax.report.suite.suite_table import behaviour_tables, behaviours_by_title, suite_table, write_behaviours
from tests.report.made_runs import made_run, no_change, set_seed, window


def _columns(table: Table) -> list[list[str]]:
    return [[str(cell) for cell in column.cells] for column in table.columns]


def _made(path: Path, seed: int, *, matching: float, icl: float, labels: tuple[str, ...], prob: float) -> str:
    """Flat to step 40, changed from step 60 on, and a little more at the end; no labels for an empty tuple."""
    model = ModelConfig(n_layers=1, d_model=6, n_heads=2, n_ctx=17, vocab_size=11)
    ramp = np.array([0.0] * 5 + [0.5] + [1.0] * 4 + [1.1])
    n = len(labels)
    label = {
        "label": (("label",), np.array(labels)), "label_n": (("label",), np.full(n, 7)),
        "label_prob": (("snapshot", "label"), np.tile((0.1 + prob * ramp)[:, None], n)),
        "label_rank": (("snapshot", "label"), np.full((11, n), 2.0)),
        "labelled_label": (("labelled",), np.zeros(3, int)),
        "labelled_prob": (("snapshot", "labelled"), np.zeros((11, 3))),
    }  # fmt: skip
    found = {
        "icl_windowed": (("snapshot",), icl * ramp),
        "prefix_matching": (("snapshot", "layer", "head"), ramp[:, None, None] * np.array([[matching, 0.1]])),
        **(no_change() if matching < 0.4 else window(40, 60)),
        **(label if n else {}),
    }
    run = made_run(path, model, found)
    set_seed(path, seed)
    return str(run.run.path)


def test_windows_scores_and_seeds(tmp_path: Path) -> None:
    pair = [_made(tmp_path / f"i{s}", s, matching=0.8, icl=-1.0 - s, labels=(), prob=0) for s in (0, 1)]
    none = _made(tmp_path / "n", 0, matching=0.2, icl=-0.1, labels=(), prob=0)
    mixed = [pair[0], none]
    names, changes, forms, icl, best = _columns(suite_table({"two": pair, "one": [none], "mixed": mixed}))
    assert names == ["two (2 seeds)", "one", "mixed (2 seeds)"]
    assert changes == ["0.0 ±0.0 to 0.1 ±0.0 M tokens", "no change found", "in 1 of 2: 0.0 to 0.1 M tokens"]
    assert forms == ["yes", "no", "in 1 of 2"]
    # Means of -1 and -2; t of one degree of freedom at 97.5 % is 12.706, the standard error 0.5.
    assert icl[0] == "0.00 ±0.00 -> -1.50 ±6.35"
    assert icl[1] == "0.00 -> -0.11"  # from a tenth of the run to its end
    assert best[:2] == ["0.00 ±0.00 -> 0.80 ±0.00", "0.00 -> 0.22"]


def test_behaviours_by_corpus_and_as_csv(tmp_path: Path) -> None:
    first = _made(tmp_path / "a", 0, matching=0.8, icl=-1, labels=("again", "new"), prob=0.5)
    second = _made(tmp_path / "b", 0, matching=0.8, icl=-1, labels=("sum",), prob=0.2)
    found = behaviours_by_title({"A": [first], "B": [second], "C": [_made(tmp_path / "c", 0, matching=0, icl=-1,
                                                                          labels=(), prob=0)]})  # fmt: skip
    assert list(found) == ["A", "B"]
    tables = list(behaviour_tables(found))
    assert [[column.header for column in table.columns][1:] for table in tables] == [["A"], ["B"]]
    assert _columns(tables[0]) == [["again", "new"], ["0.65", "0.65"]]
    assert _columns(tables[1])[0] == ["sum"]
    write_behaviours(found, tmp_path / "b.csv")
    with (tmp_path / "b.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert rows[1] == {
        "model": "A", "behaviour": "again", "when": "at the end", "probability": "0.65", "half_width_95": "0",
        "mean_rank": "2", "held_out_tokens": "7", "learned": "",
    }  # fmt: skip


def test_a_column_whose_measurement_was_not_taken_says_so(tmp_path: Path) -> None:
    whole = _made(tmp_path / "whole", 0, matching=0.8, icl=-1.0, labels=(), prob=0)
    lacking = epath.Path(_made(tmp_path / "lacking", 1, matching=0.8, icl=-1.0, labels=(), prob=0))
    data = load_dataset(lacking / "analysis.zarr").load().drop_vars(["icl_windowed", *window(40, 60)])
    save_dataset(data, lacking / "analysis.zarr")
    _, changes, forms, icl, best = _columns(suite_table({"whole": [whole], "lacking": [str(lacking)]}))
    assert changes == ["0.0 to 0.1 M tokens", "not measured"]
    assert forms == ["yes", "yes"]
    assert icl == ["0.00 -> -1.00", "not measured"]
    assert best == ["0.00 -> 0.80", "0.00 -> 0.88"]
    data = data.drop_vars("prefix_matching")
    save_dataset(data, lacking / "analysis.zarr")
    assert [column[0] for column in _columns(suite_table({"none": [str(lacking)]}))[1:]] == ["not measured"] * 4


def test_what_a_report_will_lack_is_known_before() -> None:
    everything = {entry.name for entry in TABLE}
    assert left_out("repeats", everything) == []
    lacking = left_out("markov", {"markov_strategies", "head_scores"})
    assert {
        "ICL score (nats)",
        "phase change",
        "phase_change",
        "icl_comparison",
        "behaviours_over_training",
    } <= {*lacking}
    assert not {"markov", "triggers", "prefix_matching", "best prefix matching", "induction heads"} & {*lacking}


def test_where_changes_lie_in_words() -> None:
    def finding(*ends: float, p: float = 1e-9) -> Finding:
        start, end = ends or (0.0, 0.0)
        change = Change(start, end, -1.0, 1.0, (start, start), (end, end), (-1.0, -1.0), (1.0, 1.0))
        return Finding((change,) if ends else (), p)

    inf = float("inf")
    assert window_words([finding(1.2e6, 1.84e6)]) == "1.2 to 1.8 M tokens"
    assert window_words([finding(2e6, inf)]) == "from 2.0 M tokens on, still going on at the end"
    assert window_words([finding(p=0.4), finding(p=float("nan"))]) == "no change found"
    assert window_words([finding(p=float("nan"))]) == "too few points"
    assert window_words([finding(1e6, 2e6), finding(p=0.4)]) == "in 1 of 2: 1.0 to 2.0 M tokens"
