"""Verdicts of analyses written by hand, against answers worked out by hand."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.data.corpora.repeats import RepeatsOptions
from icl_jax.report.behaviours import behaviours
from icl_jax.report.chart import Gap
from icl_jax.report.figures import smeared_against_plain
from icl_jax.report.reported_run import ReportedRun, open_runs
from icl_jax.report.verdicts import (
    ablation,
    co_occurrence,
    co_perturbation,
    continuity,
    generality,
    mechanism,
    verdicts,
)
from tests.report.made_runs import (
    PER_HEAD,
    icl_step,
    labelled_run,
    made_run,
    no_change,
    open_change,
    plain_run,
    scores_step,
    small_model,
    window,
    with_config,
)
from tests.rundir.made_run import edit_config

_SELECTED = ("selected", "layer", "head")


def test_co_occurrence_takes_heads_a_change_and_a_control_without(tmp_path: Path) -> None:
    forming = plain_run(tmp_path / "two", forms=True, model=small_model())
    flat = plain_run(tmp_path / "one", forms=False, model=small_model(1), final=-0.25)
    changing = plain_run(tmp_path / "changes", forms=False, model=small_model(1), **window(40, 60))
    finding, effect, _ = co_occurrence([forming, flat])
    assert finding == "supported"
    assert effect == [
        "two: 0.04 M to 0.06 M tokens, −1.00 nats (100 % of the run's change); 100 % of the best head formed in it",
        "one, without induction heads: no change found (p = 0.5)",
    ]
    assert co_occurrence([forming, changing])[0] == "partly"
    assert co_occurrence([forming])[::2] == (
        "partly",
        "a correlation only; needs a run on the same data that forms no induction heads",
    )
    # On other data the control says nothing of it, and its own larger change does not count against it.
    other_data = plain_run(
        tmp_path / "other", forms=False, model=replace(small_model(1), vocab_size=13), **window(40, 60)
    )
    assert co_occurrence([forming, other_data])[0] == "partly"
    assert co_occurrence([forming, flat, other_data])[:2] == ("supported", effect)
    assert co_occurrence([flat]) == ("not tested", [], "no run ends with an induction head")
    # Too few points to tell are no control.
    untold = plain_run(tmp_path / "untold", forms=False, model=small_model(1), change_p=((), np.nan))
    assert co_occurrence([forming, untold])[0] == "partly"
    # Nor do they show that heads come without a change: a single checkpoint of someone else's, say.
    one = plain_run(tmp_path / "single", forms=True, model=small_model(), **no_change() | {"change_p": ((), np.nan)})
    assert co_occurrence([one, flat])[::2] == ("not tested", "takes eight snapshots or more")
    assert co_occurrence([one, forming, flat])[0] == "supported"


def test_a_fall_without_a_change_does_not_pass(tmp_path: Path) -> None:
    linear = np.linspace(0, -1, 11)
    flat = plain_run(tmp_path / "one", forms=False, model=small_model(1), final=-0.25)
    for name, icl, prefix in (
        ("linear", linear, -linear[:, None, None] * np.array([[[0.0, 0.0], [0.9, 0.1]]])),
        ("smooth", icl_step(0.0, -1.0), scores_step(0, 0, 0.9, 0.1)),
    ):
        run = plain_run(
            tmp_path / name, forms=True, model=small_model(), icl_windowed=(("snapshot",), icl),
            prefix_matching=(PER_HEAD, prefix), **no_change(),
        )  # fmt: skip
        finding, effect, _ = co_occurrence([run, flat])
        assert (finding, effect[0]) == ("not supported", f"{name}: no change found (p = 0.5)")
    forming = plain_run(tmp_path / "two", forms=True, model=small_model())
    assert co_occurrence([run, forming, flat])[0] == "partly"


def test_the_heads_rise_is_counted_by_the_changes(tmp_path: Path) -> None:
    # From step 45, where a quarter is done, to step 65: 1 % to 99 % of a step of 50 to 60.
    late = plain_run(tmp_path / "late", forms=True, model=small_model(), **window(50, 60))
    assert "75 % of the best head formed" in co_occurrence([late])[1][0]
    always = plain_run(
        tmp_path / "always", forms=True, model=small_model(), prefix_matching=(PER_HEAD, np.full((11, 2, 2), 0.9))
    )
    assert "0 % of the best head formed" in co_occurrence([always])[1][0]
    still = plain_run(tmp_path / "still", forms=True, model=small_model(), **open_change(40))
    assert co_occurrence([still])[1] == [
        "still: from 0.04 M tokens on, still going on at the end, −0.50 nats (100 % of the run's change); "
        "100 % of the best head formed in it"
    ]


def test_heads_that_match_in_their_own_corpus_are_induction_heads(tmp_path: Path) -> None:
    def run(name: str, model: ModelConfig, matching: np.ndarray, prob: float = 0.9) -> ReportedRun:
        label = {
            "label": (("label",), np.array(["name"])), "label_prob": (("snapshot", "label"), np.full((11, 1), prob)),
            "label_matching": (("snapshot", "label", "layer", "head"), matching[:, None]),
        }  # fmt: skip
        return plain_run(tmp_path / name, forms=False, model=model, **window(40, 60), **label)

    two = run("two", small_model(), scores_step(0.7, 0.1, 0.8, 0.1))
    assert two.heads_of("induction") == [(1, 0)]  # a head of the first layer cannot match, whatever it scores
    assert co_occurrence([two])[1][0].endswith("100 % of the best head formed in it")
    assert run("lacking", small_model(), scores_step(0.1, 0.1, 0.8, 0.1), prob=0.4).forms_induction is False
    assert run("one", small_model(1), scores_step(0.8, 0.1)).forms_induction is False
    assert run("smeared", small_model(1, smeared_keys=True), scores_step(0.8, 0.1)).forms_induction


def test_each_verdict_says_which_controls_its_runs_contain(tmp_path: Path) -> None:
    forming = plain_run(tmp_path / "two", forms=True, model=small_model())
    flat = plain_run(tmp_path / "one", forms=False, model=small_model(1), final=-0.25)
    alone = {row.argument[0]: row.controls for row in verdicts([forming])}
    assert "models without induction heads on the same data: not tested" in alone["1"]
    assert all(alone.values())
    both = {row.argument[0]: row.controls for row in verdicts([forming, flat])}
    assert both["1"] == [
        "models without induction heads on the same data: one, one layer: no change found (p = 0.5)",
        "untrained weights, best prefix matching: two 0.00",
        "shuffled contexts: not tested",
        "a corpus without repeats: not tested",
    ]
    assert both["2"][0] == "the same model without smeared keys: not tested"
    ablated = plain_run(
        tmp_path / "ablated", forms=True, model=small_model(),
        pattern_preserving_icl_effect=(_SELECTED, _effects(0.3, 0.0, 0.5, 0.1)),
    )  # fmt: skip
    (row,) = [row for row in verdicts([ablated]) if row.argument[0] == "3"]
    assert row.controls[0] == ("other heads of the same layers: ablated: 1, the costliest +0.10 nats of ICL score")
    assert row.controls[1].endswith("drawn three times: not tested")
    assert row.controls[2].endswith("one head at a time: ablated: +7.00 before, +0.50 nats of ICL score after")


def test_controls_that_runs_contain_are_found(tmp_path: Path) -> None:
    once = ("selected",)
    run = plain_run(
        tmp_path / "two", forms=True, model=small_model(), shuffled_icl=(once, np.full(11, 0.1)),
        shuffled_icl_sem=(once, np.full(11, 0.03)), set_n=(once, np.full(11, 2)),
        random_set_n=(once, np.full(11, 2)), set_icl_effect=(once, np.full(11, 0.8)),
        set_icl_effect_sem=(once, np.full(11, 0.05)),
        random_set_icl_effect=((*once, "draw"), np.tile([0.1, -0.02, 0.0], (11, 1))),
    )  # fmt: skip
    bare = plain_run(tmp_path / "bare", forms=False, model=small_model())
    edit_config(tmp_path / "bare", lambda text: re.sub("phrase_prob = .*", "phrase_prob = 1e-6", text))
    rows = {row.argument[0]: row.controls for row in verdicts([run, *open_runs([str(bare.run.path)])])}
    assert "shuffled contexts: two +0.10 ± 0.03 nats in place of −1.00" in rows["1"]
    assert "a corpus without repeats: bare: no change found (p = 0.5)" in rows["1"]
    assert rows["3"][1].endswith("two: 2 cost +0.80 ± 0.05 nats of ICL score, 2 others −0.02 to +0.10")


def test_co_perturbation_takes_a_pair_that_differs_in_smearing_alone(tmp_path: Path) -> None:
    smeared = plain_run(tmp_path / "smeared", forms=True, model=small_model(1, smeared_keys=True), final=-1.5)
    plain = plain_run(tmp_path / "plain", forms=False, model=small_model(1), final=-0.25)
    other = plain_run(tmp_path / "other", forms=False, model=small_model(2))
    finding, effect, limits = co_perturbation([other, smeared, plain])
    assert (finding, limits) == ("supported", "one seed each")
    assert effect == [
        "smeared: 0.0 to 0.1 M tokens, ICL score −1.50 at the end",
        "plain: no change found, no induction head, ICL score −0.25 at the end",
    ]
    needs = "needs a run with smeared keys beside one that differs from it in nothing else"
    assert co_perturbation([smeared, other]) == ("not tested", [], needs)
    assert smeared_against_plain.FIGURE.panels([smeared, other])[0].chart == Gap(needs)
    chart = smeared_against_plain.FIGURE.panels([plain, smeared])[0].chart
    assert [(s.label, s.dashed) for s in chart.series] == [
        ("smeared: one layer, smeared keys", False),
        ("plain: one layer", True),
    ]


def test_smearing_must_be_sooner_where_both_change(tmp_path: Path) -> None:
    control = plain_run(tmp_path / "control", forms=True, model=small_model(2))
    sooner = plain_run(tmp_path / "sooner", forms=True, model=small_model(2, smeared_keys=True), **window(20, 40))
    as_late = plain_run(tmp_path / "as_late", forms=True, model=small_model(2, smeared_keys=True))
    assert co_perturbation([control, sooner])[0] == "supported"
    assert co_perturbation([control, as_late])[0] == "not supported"


def _effects(*heads: float) -> np.ndarray:
    """[selected, layer, head]: what `heads` says at step 60, the end of the change; other values before and after."""
    values = np.full((11, 2, 2), 7.0)
    values[6] = np.reshape(heads, (2, 2))
    return values


@pytest.mark.parametrize(
    ("along", "icl", "expected"),
    [
        ((0.0, 0.0, -0.6, -0.2), (0.0, 0.1, 0.5, -0.1), "supported"),
        ((0.0, 0.0, -0.05, 0.0), (0.0, 0.0, 0.5, 0.0), "partly"),  # undoes less than a tenth
        ((0.0, 0.0, -0.6, 0.0), (0.9, 0.0, 0.2, 0.0), "partly"),  # others cost more
        ((0.0, 0.0, 0.1, 0.0), (0.0, 0.0, -0.2, 0.0), "not supported"),
    ],
)
def test_ablation_holds_induction_heads_against_the_others(
    tmp_path: Path, along: tuple[float, ...], icl: tuple[float, ...], expected: str
) -> None:
    run = plain_run(
        tmp_path / "run", forms=True, model=small_model(),
        pattern_preserving_along_change=(_SELECTED, _effects(*along)),
        pattern_preserving_icl_effect=(_SELECTED, _effects(*icl)),
    )  # fmt: skip
    finding, effect, _ = ablation([run])
    assert finding == expected
    if expected == "supported":
        # Head 1.0 alone is one; the others' means are 0.2 / 3 and 0.0.
        text = "run: each induction head undoes 0.60 of the change and costs +0.50 nats of ICL score"
        assert effect == [f"{text}, the other heads 0.07 and +0.00"]


def test_ablation_that_was_not_taken_is_not_tested(tmp_path: Path) -> None:
    run = plain_run(tmp_path / "run", forms=True, model=small_model())
    assert ablation([run]) == ("not tested", [], "the ablations were not taken (icl-jax analyze RUN)")


def _mechanism_run(path: Path, *, previous: float, z: float, copying: float = 0.8) -> ReportedRun:
    composition = np.full((11, 2, 2, 2, 2), np.nan)
    composition[:, 0, :, 1, :] = -1.0
    composition[-1, 0, 1, 1, 0] = z
    return plain_run(
        path, forms=True, model=small_model(),
        copying_eigenvalue=(PER_HEAD, np.full((11, 2, 2), copying)),
        qk_trace_ratio=(PER_HEAD, np.full((11, 2, 2), 0.5)),
        qk_trace=(PER_HEAD, np.full((11, 2, 2), 3.0)),
        k_composition_z=(("snapshot", "layer_src", "head_src", "layer_dst", "head_dst"), composition),
        previous_token=(PER_HEAD, scores_step(0.1, previous, 0.1, 0.1)),
    )  # fmt: skip


def test_mechanism_takes_copying_matching_and_a_previous_token_head(tmp_path: Path) -> None:
    finding, effect, _ = mechanism([_mechanism_run(tmp_path / "all", previous=0.7, z=5.0)])
    assert finding == "supported"
    assert effect == [
        "all: induction heads copy with +0.80 (−1 to 1), match by weights +0.50 (−1 to 1), and read head 0.1 "
        "(previous-token score 0.70) at +5.0 sd"
    ]
    assert mechanism([_mechanism_run(tmp_path / "no_previous", previous=0.2, z=5.0)])[0] == "partly"
    assert mechanism([_mechanism_run(tmp_path / "no_pair", previous=0.7, z=2.0)])[0] == "partly"
    one_layer = plain_run(
        tmp_path / "one",
        forms=True,
        model=small_model(1),
        copying_eigenvalue=(PER_HEAD, np.full((11, 1, 2), 0.8)),
    )
    assert mechanism([one_layer])[::2] == ("partly", "copying only: K-composition needs two layers")


def test_continuity_takes_three_sizes(tmp_path: Path) -> None:
    runs = [plain_run(tmp_path / str(n), forms=True, model=small_model(n)) for n in (2, 3, 4)]
    assert continuity(runs)[0] == "partly"
    again = plain_run(tmp_path / "again", forms=True, model=small_model(3))
    none = plain_run(tmp_path / "none", forms=False, model=small_model(5))
    other_data = plain_run(tmp_path / "other", forms=True, model=replace(small_model(4), vocab_size=13))
    assert continuity([*runs[:2], again, none, other_data])[::2] == (
        "not tested",
        "needs 3 sizes or more on the same data that form induction heads; here 2",
    )
    assert [row.argument[0] for row in verdicts(runs)] == list("123456")


def test_behaviours_before_and_after_with_intervals(tmp_path: Path) -> None:
    first = labelled_run(tmp_path / "a", 0, 0.5)
    (row,) = behaviours([first])
    assert (row.label, row.group, row.before.prob, row.before.rank, row.after.n) == ("again", "a", 0.1, 10.0, 3)
    # Over single tokens: 0.4, 0.5, 0.6 have a standard deviation of 0.1.
    assert (row.after.prob, row.after.rank) == (0.5, 2.0)
    assert row.after.half == pytest.approx(1.96 * 0.1 / np.sqrt(3))
    (row,) = behaviours([first, labelled_run(tmp_path / "b", 1, 0.7)])
    # Over two seeds: mean 0.6, standard error 0.1, and t of one degree of freedom at 97.5 % is 12.706.
    assert (row.group, row.after.n) == ("a (2 seeds)", 6)
    assert row.after.prob == pytest.approx(0.6)
    assert row.after.half == pytest.approx(12.706 * 0.1, rel=1e-4)
    assert generality([first])[:2] == ("not tested", ["a: again 0.10 → 0.50"])


def test_generality_names_the_head_of_several_behaviours(tmp_path: Path) -> None:
    labels = ("name", "sum", "glossary", "lacking", "absent")
    at_end = np.full((5, 2, 2), 0.1)
    at_end[:4, 1, 0] = 0.9, 0.6, 0.3, 0.9  # head 1.0; the glossary below the threshold, a behaviour that is lacking
    at_end[4] = np.nan
    prob = np.array([0.9, 0.8, 0.9, 0.4, 0.9])
    fields = {
        "label": (("label",), np.array(labels)), "label_n": (("label",), np.full(5, 3)),
        "label_prob": (("snapshot", "label"), np.tile(prob, (11, 1))),
        "label_rank": (("snapshot", "label"), np.ones((11, 5))),
        "labelled_label": (("labelled",), np.arange(5)),
        "labelled_prob": (("snapshot", "labelled"), np.tile(prob, (11, 1))),
        "label_matching": (("snapshot", "label", "layer", "head"), np.tile(at_end, (11, 1, 1, 1))),
    }  # fmt: skip
    run = plain_run(tmp_path / "two", forms=True, model=small_model(), **fields)
    finding, effect, _ = generality([run])
    assert finding == "partly"
    assert effect[1:] == [
        "two: what followed the same token before is looked up by head 1.0 for name (0.90), sum (0.60)"
    ]
    fields["label_matching"] = (fields["label_matching"][0], np.full((11, 5, 2, 2), 0.3))
    assert generality([plain_run(tmp_path / "none", forms=True, model=small_model(), **fields)])[0] == "not tested"


def test_rows_of_other_options_are_no_control(tmp_path: Path) -> None:
    forming = plain_run(tmp_path / "two", forms=True, model=small_model())
    flat = plain_run(tmp_path / "one", forms=False, model=small_model(1), final=-0.25)
    assert co_occurrence([forming, with_config(flat, "data", seed=5)])[0] == "supported"
    assert (
        co_occurrence([forming, with_config(flat, "data", options=RepeatsOptions(phrase_len=2, phrase_prob=0.4))])[0]
        == "partly"
    )


def _without(path: Path, run: ReportedRun, *variables: str) -> ReportedRun:
    """The same run with an analysis that nobody asked for these variables."""
    data = {name: (values.dims, values.values) for name, values in run.data.data_vars.items() if name not in variables}
    return made_run(path, run.config.model, data)


def test_what_was_not_measured_is_not_said_to_be_not_so(tmp_path: Path) -> None:
    whole = _mechanism_run(tmp_path / "whole", previous=0.7, z=5.0)
    unscored = _without(tmp_path / "unscored", whole, "prefix_matching")
    none = plain_run(tmp_path / "none", forms=False, model=small_model())
    for argument in (co_occurrence, ablation, mechanism):
        assert argument([none])[::2] == ("not tested", "no run ends with an induction head")
        finding, _, limits = argument([none, unscored])
        assert finding == "not tested"
        assert "the head scores" in limits
        assert "unscored" in limits or argument is not co_occurrence
        assert "no run ends" not in limits
    assert unscored.forms_induction is None
    no_change_p = _without(tmp_path / "no_change_p", whole, "change_p")
    assert co_occurrence([no_change_p]) == ("not tested", [], "the phase changes were not taken (icl-jax analyze RUN)")
    assert co_occurrence([whole, no_change_p])[2].startswith(
        "a correlation only; the phase changes of no_change_p were not"
    )
    no_copying = _without(tmp_path / "no_copying", whole, "copying_eigenvalue")
    assert mechanism([no_copying]) == ("not tested", [], "the copying scores were not taken (icl-jax analyze RUN)")
    weights = _without(tmp_path / "weights", whole, "k_composition_z", "qk_trace", "qk_trace_ratio")
    finding, _, limits = mechanism([weights])
    assert (finding, limits) == (
        "partly", "copying only: the QK traces and the K-composition scores were not taken (icl-jax analyze RUN)"
    )  # fmt: skip
    assert mechanism([_without(tmp_path / "no_previous", whole, "previous_token")])[0] == "partly"
    assert "the head scores" in continuity([unscored])[2]


def test_a_pair_whose_change_was_not_measured_is_not_one_without_heads(tmp_path: Path) -> None:
    smeared = plain_run(tmp_path / "smeared", forms=True, model=small_model(1, smeared_keys=True))
    plain = plain_run(tmp_path / "plain", forms=False, model=small_model(1))
    for lacking in (("change_p",), ("prefix_matching",), ("icl_windowed",)):
        untaken = _without(tmp_path / lacking[0], smeared, *lacking)
        finding, effect, limits = co_perturbation([untaken, plain])
        assert (finding, effect) == ("not tested", [])
        assert f"of {lacking[0]} were not taken (icl-jax analyze RUN)" in limits
    chart = smeared_against_plain.FIGURE.panels([untaken, plain])[0].chart
    assert isinstance(chart, Gap)
    assert chart.why.endswith("; icl_windowed: loss_by_position is not in this analysis; icl-jax analyze RUN takes it")


def test_labels_that_were_not_measured_are_not_said_to_be_lacking(tmp_path: Path) -> None:
    whole = labelled_run(tmp_path / "a", 0, 0.5)
    assert "the heads' attention by label were not taken" in generality([whole])[2]
    unmeasured = _without(tmp_path / "b", whole, "label_prob", "label_rank")
    unmeasured.data.coords["label"] = whole.data["label"]
    assert generality([unmeasured]) == ("not tested", [], "the losses by label were not taken (icl-jax analyze RUN)")
