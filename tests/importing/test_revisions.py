"""What names of revisions say, as the series on the hub have them."""

import pytest

from icl_jax.config import UserError
from icl_jax.importing.sources.revision import Revision, choose_steps, revision_of, series_of

NAMES = {
    "step0": (0, None, (1, 0)),
    "step143000": (143_000, None, (1, 0)),
    "checkpoint-400": (400, None, (1, 0)),
    "step-160000": (160_000, None, (1, 0)),
    "ckpt_007": (7, None, (1, 0)),
    "step_1000": (1000, None, (1, 0)),
    "global_step1000": (1000, None, (1, 0)),
    "step1000-tokens4B": (1000, 4 * 10**9, (1, 0)),
    "stage1-step140000-tokens294B": (140_000, 294 * 10**9, (1, 0)),
    "stage2-ingredient3-step23852-tokens51B": (23_852, 51 * 10**9, (2, 3)),
    "stage1-step-40000": (40_000, None, (1, 0)),
    "step-001000-2BT": (1000, 2 * 10**9, (1, 0)),
    "main": (None, None, (1, 0)),
    "step1000-again": (None, None, (1, 0)),
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_names(name: str, expected: tuple[int | None, int | None, tuple[int, int]]) -> None:
    found = revision_of(name)
    assert (found.step, found.tokens, found.stage) == expected


def test_a_series_is_in_the_order_of_steps_and_of_one_stage() -> None:
    series, words = series_of(["step10", "main", "step9", "stage2-step1-tokens1B", "step100"])
    assert [revision.step for revision in series] == [9, 10, 100]
    assert words == ["stages that are left out, each counting its steps from 0: 2 (--stage names those to take)"]
    with pytest.raises(UserError, match="step1 and step_1: are both of step 1"):
        series_of(["step_1", "step1"])


def test_stages_are_counted_on_in_the_order_that_is_named() -> None:
    names = [
        "stage1-step0-tokens0B", "stage1-step900-tokens4B", "stage2-ingredient1-step10-tokens1B",
        "stage2-ingredient2-step0-tokens0B", "stage2-ingredient2-step10-tokens1B", "stage2-ingredient2-step20-tokens2B",
    ]  # fmt: skip
    series, words = series_of(names, "1, 2-ingredient2")
    assert [(one.step, one.tokens) for one in series] == [
        (0, 0), (900, 4 * 10**9), (910, 5 * 10**9), (920, 6 * 10**9),
    ]  # fmt: skip
    assert series[2].name == "stage2-ingredient2-step10-tokens1B"
    assert "2-ingredient1 (--stage" in words[0]
    assert [one.step for one in series_of(names, "stage2-ingredient2")[0]] == [0, 10, 20]
    with pytest.raises(UserError, match="--stage = '3': there is no 3; there are 1, 2-ingredient1, 2-ingredient2"):
        series_of(names, "3")
    with pytest.raises(UserError, match="--stage = 'b': must be stages such as 1 or 2-ingredient3"):
        series_of(names, "b")


def test_steps_and_ranges_are_chosen() -> None:
    revisions = [Revision(name=f"step{step}", step=step) for step in (0, 1, 2, 4, 8)]
    assert choose_steps(revisions, "") == (revisions, [])
    chosen, missing = choose_steps(revisions, "1-4, 8,3,5")
    assert ([revision.step for revision in chosen], missing) == ([1, 2, 4, 8], [3, 5])
