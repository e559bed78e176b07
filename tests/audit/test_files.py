"""What lists of files say of a series, with no byte of the weights read."""

import numpy as np
import pytest

from icl_jax.audit.files import judge_files, judge_gaps
from icl_jax.audit.finding import Finding, steps_text
from icl_jax.audit.loss import judge_loss

STEPS = range(0, 10_000, 1000)


def _series() -> dict[int, dict[str, str]]:
    return {
        step: {"config.json": "c", "tokenizer.json": "", "model.safetensors": f"s{step}", "optimizer.bin": "o"}
        for step in STEPS
    }


def _shards(step: int, n: int = 2) -> dict[str, str]:
    return {"config.json": "c"} | {f"model-{i:05}-of-{n:05}.safetensors": f"{step}.{i}" for i in range(1, n + 1)}


def test_a_series_that_is_clean_gives_none() -> None:
    for series in (_series(), {step: _shards(step) for step in STEPS}):
        assert judge_files(series) == ([], [], set())
    twice = {step: files | {"pytorch_model.bin": f"b{step}"} for step, files in _series().items()}
    assert judge_files(twice)[0] == []
    assert judge_files(_series() | {1: {"config.json": "c", "model.safetensors": "s0"}})[1]  # warm-up: a note


def _found(series: dict[int, dict[str, str]]) -> Finding:
    (finding,), _, _ = judge_files(series)
    return finding


def test_what_is_missing_stray_or_equal_is_named() -> None:
    whole, parts = _series(), {step: _shards(step) for step in STEPS}
    final = {step: files | {"model.safetensors": "s9000"} for step, files in whole.items() if step > 3000}
    assert _found(whole | final).steps == (4000, 5000, 6000, 7000, 8000, 9000)
    swapped = _found(parts | {3000: parts[3000] | {"model-00002-of-00002.safetensors": "7000.2"}})
    assert (swapped.kind, swapped.steps) == ("tensor out of line", (3000, 7000))
    assert "model-00002-of-00002.safetensors is the same file" in swapped.said
    no_config = {"model.safetensors": "s3000"}
    cases = {
        "has no config.json": (whole | {3000: no_config}, "missing"),
        "has no model-00001-of-00002.safetensors": (
            parts | {3000: {k: v for k, v in parts[3000].items() if "00001-of" not in k}}, "missing",
        ),
        "has no weights": (whole | {3000: {"config.json": "c"}}, "missing"),
        "other.pth is in 1 of the 10 checkpoints alone": (whole | {3000: whole[3000] | {"other.pth": "x"}}, "stray"),
        "1 of 3 files model-*-of-00003.safetensors beside whole weights": (
            {s: f | {"model-00001-of-00003.safetensors": f"x{s}"} for s, f in whole.items() if s == 3000}, "stray",
        ),
        "has no model.safetensors, which 9 of the 10 checkpoints have": (
            {s: (f if s != 3000 else {"config.json": "c", "pytorch_model.bin": "b"}) | {"pytorch_model.bin": f"b{s}"}
             for s, f in whole.items()}, "missing",
        ),
    }  # fmt: skip
    for said, (series, kind) in cases.items():
        finding = _found(series)
        assert (finding.kind, finding.steps) == (kind, (3000,))
        assert said in finding.said


def test_steps_that_are_passed_over() -> None:
    steps = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, *range(1000, 143_001, 1000)]
    assert judge_gaps(steps) == []
    (finding,) = judge_gaps([step for step in steps if step not in (60_000, 61_000)])
    assert finding.steps == (60_000, 61_000)


@pytest.mark.parametrize("growth", [1.02, 1.05, 1.1, 1.3])
def test_rounded_steps_of_a_logarithmic_schedule_are_not_passed_over(growth: float) -> None:
    steps = sorted({round(growth**i) for i in range(600) if growth**i < 200_000})
    assert judge_gaps([0, *steps]) == []


def test_a_loss_that_stands_out() -> None:
    steps = np.arange(40)
    loss = 4 - 2 / (1 + np.exp(-(steps - 15) / 1.5)) + 0.02 * np.random.default_rng(0).normal(size=40)
    assert judge_loss(steps, loss) == []
    for step in (6, 15, 39):
        (finding,) = judge_loss(steps, loss + 1.5 * (steps == step))
        assert finding.steps == (step,)
    assert judge_loss(steps, np.where(steps == 3, np.nan, loss))[0].said == "is not finite"


@pytest.mark.parametrize(("steps", "text"), [((), ""), ((1, 2), "1, 2"), (tuple(range(9)), "0, 1, 2, ..., 8 (9)")])
def test_steps_are_told_shortly(steps: tuple[int, ...], text: str) -> None:
    assert steps_text(steps) == text
