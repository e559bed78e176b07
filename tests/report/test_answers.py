"""The table of whole answers: means over seeds, and when they are learned."""

from pathlib import Path

import numpy as np

from icl_jax.report.answers import AnswersRow, answers
from tests.report.made_runs import labelled_run, plain_run, small_model


def test_means_over_seeds_and_the_median_of_those_that_learn(tmp_path: Path) -> None:
    runs = [labelled_run(tmp_path / name, seed, 0.5) for name, seed in (("a", 0), ("b", 1), ("c", 2))]
    for i, run in enumerate(runs):
        n_snapshots, n_labels = run.data["label_prob"].shape
        prob = np.full((n_snapshots, n_labels, 9), np.nan)
        prob[:, 0, 0] = 0.25
        prob[-1, 0, 4] = (0.7, 0.8, 0.9)[i]
        prob[-1, 0, 8] = 0.95
        run.data["answer_prob"] = (("snapshot", "label", "examples"), prob)
        run.data["answer_prob_all"] = (("snapshot", "label"), np.full((n_snapshots, n_labels), 0.5))
        run.data["answer_right_all"] = (("snapshot", "label"), np.full((n_snapshots, n_labels), 0.75))
        run.data["answer_tokens_all"] = (("label",), np.full(n_labels, (2e6, 4e6, np.nan)[i]))
    row = answers([*runs, plain_run(tmp_path / "other", forms=False, model=small_model(1))])[0]
    # t of two degrees of freedom, 4.3027, times 0.1 / sqrt(3); no answer has one or two examples before it.
    by_examples = ["0.25", "", "", "0.80 ± 0.25", "0.95"]
    assert row == AnswersRow(
        str(runs[0].data["label"].values[0]), "a (3 seeds)", by_examples, "0.50", "0.75", "3 M; not by 1 of 3 seeds"
    )
    runs[1].data["answer_tokens_all"][:] = np.nan
    runs[0].data["answer_tokens_all"][:] = np.nan
    assert answers(runs)[0].learned == "0.9 not reached"
