"""Faults of every kind, each planted in a series that is clean without it."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from icl_jax.audit.finding import Finding
from icl_jax.audit.judge import equal_checkpoints, judge
from icl_jax.audit.trajectory import follow
from tests.audit.conftest import Series

Plant = Callable[[Series, list[int], dict[str, np.ndarray]], None]


def _judged(series: Series) -> list[Finding]:
    whole = {step: b"".join(a.tobytes() for a in one.values()).hex() for step, one in series.items()}
    findings, _, left_out = equal_checkpoints(whole)
    found = follow((step, one) for step, one in series.items() if step not in left_out)
    assert found is not None
    return findings + judge(found)


def _noise(series: Series, steps: list[int], _other: object) -> None:
    array = series[steps[20]]["W_Q.1"]
    draw = np.random.default_rng(0).normal(0, array.std(), array.shape)
    series[steps[20]]["W_Q.1"] = array + draw.astype(np.float32)


def _zero(series: Series, steps: list[int], _other: object) -> None:
    series[steps[20]]["W_V.0"] = np.zeros_like(series[steps[20]]["W_V.0"])


def _from_another_step(series: Series, steps: list[int], _other: object) -> None:
    series[steps[20]]["W_O.0"] = series[steps[24]]["W_O.0"]


def _from_a_step_that_is_not_there(series: Series, steps: list[int], _other: object) -> None:
    series[steps[20]]["W_O.0"] = series.pop(steps[-1])["W_O.0"]


def _swapped_shard(series: Series, steps: list[int], _other: object) -> None:
    """pythia #206: half of the tensors, those of one file, are of another checkpoint."""
    names = sorted(series[0])
    last = series.pop(steps[-1])
    series[steps[20]] |= {name: last[name] for name in names[: len(names) // 2 - 1]}


def _permuted_layers(series: Series, steps: list[int], _other: object) -> None:
    one = series[steps[20]]
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        one[f"{name}.0"], one[f"{name}.1"] = one[f"{name}.1"], one[f"{name}.0"]


def _noise_at_the_end(series: Series, steps: list[int], _other: object) -> None:
    array = series[steps[-1]]["W_Q.1"]
    draw = np.random.default_rng(0).normal(0, array.std(), array.shape)
    series[steps[-1]]["W_Q.1"] = array + draw.astype(np.float32)


def _zero_at_the_start(series: Series, _steps: object, _other: object) -> None:
    series[0]["W_Q.1"] = np.zeros_like(series[0]["W_Q.1"])


def _final_weights(series: Series, steps: list[int], _other: object) -> None:
    """pythia #205: branches in the middle of a series serve the last."""
    for step in steps[10:20]:
        series[step] = series[steps[-1]]


def _two_alike(series: Series, steps: list[int], _other: object) -> None:
    """OLMo #915: two branches side by side are one."""
    series[steps[31]] = series[steps[30]]


def _last_twice(series: Series, steps: list[int], _other: object) -> None:
    series[steps[-2]] = series[steps[-1]]


def _of_later(series: Series, steps: list[int], _other: object) -> None:
    """One checkpoint is that of a step that the series does not have."""
    series[steps[12]] = series.pop(steps[-1])


def _a_block_of_later(series: Series, steps: list[int], _other: object) -> None:
    """Five in a row are of later steps, none of which the series has."""
    later = [series.pop(step) for step in steps[-5:]]
    for step, one in zip(steps[8:13], later, strict=True):
        series[step] = one


def _another_start(series: Series, _steps: object, other: dict[str, np.ndarray]) -> None:
    """pythia #203: what was trained is not this step 0."""
    series[0] = other


def _another_run(series: Series, steps: list[int], _other: object) -> None:
    """From the middle on, of another run: as long a way, to somewhere else."""
    rng = np.random.default_rng(0)
    order = {name: rng.permutation(array.size) for name, array in series[0].items()}
    for step in steps[20:]:
        series[step] = {n: array.ravel()[order[n]].reshape(array.shape) for n, array in series[step].items()}


PLANTED: dict[str, tuple[Plant, str, int, str]] = {
    # what: (how, kind of finding, index of its first step, what it must say)
    "noise": (_noise, "tensor out of line", 20, "W_Q.1 stands"),
    "zeros": (_zero, "tensor out of line", 20, "W_V.0 is one number throughout"),
    "another step": (_from_another_step, "tensor out of line", 20, "W_O.0 equals that of step"),
    "a step that is not there": (_from_a_step_that_is_not_there, "tensor out of line", 20, "W_O.0 stands"),
    "swapped shard": (_swapped_shard, "tensor out of line", 20, "more tensors"),
    "permuted layers": (_permuted_layers, "tensor out of line", 20, "W_K.0"),
    "noise at the end": (_noise_at_the_end, "tensor out of line", -1, "W_Q.1 stands"),
    "zeros at the start": (_zero_at_the_start, "tensor out of line", 0, "W_Q.1 is one number"),
    "final weights": (_final_weights, "equal weights", 10, "11 checkpoints hold the same weights"),
    "two alike": (_two_alike, "equal weights", 30, "2 checkpoints"),
    "last twice": (_last_twice, "equal weights", -2, "2 checkpoints"),
    "a later one": (_of_later, "checkpoint out of line", 12, "times farther from both neighbours"),
    "a block of later ones": (_a_block_of_later, "return", 12, "the distance from step 0 falls"),
    "another start": (_another_start, "start", 0, "step 1 has nothing of step 0"),
    "another run": (_another_run, "descent", 19, "has nothing of step"),
}


@pytest.mark.parametrize(("plant", "kind", "first", "said"), PLANTED.values(), ids=PLANTED)
def test_what_is_planted_is_found_and_nothing_else(
    plant: Plant, kind: str, first: int, said: str, clean: Series, other_start: dict[str, np.ndarray]
) -> None:
    series = {step: dict(one) for step, one in clean.items()}
    steps = sorted(series)
    plant(series, steps, other_start)
    findings = _judged(series)
    assert [finding.kind for finding in findings if finding.kind != "jump"] == [kind]
    (finding,) = [finding for finding in findings if finding.kind == kind]
    assert finding.steps[0] == steps[first]
    assert said in finding.said


def test_a_series_that_is_clean_gives_none(clean: Series) -> None:
    """Through warm-up and a learning rate ten times the usual, whole, thinned, and rounded to sixteen bits."""
    assert _judged(clean) == []
    for every in (2, 3, 5, 10):
        steps = sorted(clean)[::every]
        assert _judged({step: clean[step] for step in steps}) == []
    for kind in (np.float16, ml_dtypes.bfloat16):
        rounded = {step: {n: a.astype(kind).astype(np.float32) for n, a in one.items()} for step, one in clean.items()}
        assert _judged(rounded) == []


def test_what_may_stand_still_is_no_finding(clean: Series) -> None:
    """A tensor that is never trained; all of them at the first update of a warm-up that begins at 0."""
    frozen = {step: one | {"W_E": clean[0]["W_E"]} for step, one in clean.items()}
    assert _judged(frozen) == []
    assert _judged(clean | {1: clean[0]}) == []
    _, notes, _ = equal_checkpoints({0: "a", 1: "a", 2: "b"})
    assert notes == ["steps 0 and 1 hold the same weights, as after an update with a learning rate of 0"]
