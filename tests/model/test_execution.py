"""What is chosen for a platform and a size, and that it is chosen in one place."""

import dataclasses
from typing import Any

import pytest

from icl_jax.config import ModelConfig, TrainConfig
from icl_jax.model.execution import Execution, n_micro_batches, resolve


@pytest.mark.parametrize(
    ("platform", "n_devices", "expected"),
    [
        ("cpu", 1, {"attention": "blocked", "loss_chunk": 512, "n_micro_batches": 8}),  # 4 rows of 128 tokens each
        ("cpu", 4, {"attention": "blocked", "loss_chunk": 512, "n_micro_batches": 2}),
        ("gpu", 1, {"attention": "cudnn", "loss_chunk": 2**29 // 64, "n_micro_batches": 1}),
        ("tpu", 8, {"attention": "splash", "loss_chunk": 2**29 // 64, "n_micro_batches": 1}),
        ("rocm", 1, {"attention": "reference", "loss_chunk": 2**29 // 64, "n_micro_batches": 1}),
    ],
)
@pytest.mark.parametrize(("n_layers", "is_deep"), [(0, False), (8, False), (9, True)])
def test_a_training_step(platform: str, n_devices: int, expected: Any, n_layers: int, is_deep: bool) -> None:
    found = resolve(ModelConfig(n_layers=n_layers), platform, TrainConfig(), n_devices)
    assert found == Execution(**expected, remat=is_deep, scan_layers=is_deep, own_gradients=True)


@pytest.mark.parametrize(
    ("platform", "attention", "n_ctx", "expected"),
    [
        ("cpu", "auto", 128, "blocked"),
        ("gpu", "auto", 2048, "reference"),
        ("tpu", "auto", 8192, "blocked"),
        # The kernel of another platform.
        ("cpu", "splash", 128, "blocked"),
        ("gpu", "splash", 128, "reference"),
        ("cpu", "reference", 128, "reference"),
        ("gpu", "blocked", 128, "blocked"),
    ],
)
def test_everything_else_takes_plain_forms_that_run_anywhere(
    platform: str, attention: Any, n_ctx: int, expected: str
) -> None:
    found = resolve(ModelConfig(attention=attention, n_ctx=n_ctx), platform)
    assert (found.attention, found.own_gradients, found.n_micro_batches) == (expected, False, 1)


def test_what_the_config_says_stays() -> None:
    config = ModelConfig(attention="reference", loss_chunk=7)
    for train in (None, TrainConfig(accum_steps=4)):
        found = resolve(config, "gpu", train)
        assert (found.attention, found.loss_chunk) == ("reference", 7)
        assert found.n_micro_batches == (4 if train else 1)


def test_a_chunk_is_two_gib_of_logits_and_a_token_at_least() -> None:
    assert resolve(ModelConfig(vocab_size=65536), "gpu").loss_chunk == 8192
    assert resolve(ModelConfig(vocab_size=2**30), "tpu").loss_chunk == 1


def test_it_says_what_was_chosen() -> None:
    deep = resolve(ModelConfig(n_layers=9), "cpu", TrainConfig())
    assert str(deep) == (
        "blocked attention, logits of 512 tokens at a time, 8 micro-batches, layers scanned, rematerialised"
    )
    assert str(resolve(ModelConfig(loss_chunk=9), "tpu")) == "reference attention, logits of 9 tokens at a time"
    assert dataclasses.asdict(deep)["remat"] is True


@pytest.mark.parametrize(
    ("shape", "accum_steps", "platform", "expected"),
    [
        ((16, 257), 1, "cpu", 8),  # two rows are 512 tokens
        ((16, 257), 4, "cpu", 8),
        ((4, 1025), 1, "cpu", 4),  # one row is more
        ((9, 257), 1, "cpu", 3),  # two do not divide nine
        ((7, 129), 1, "cpu", 1),  # seven is a prime: seven rows or one, and one is too little
        ((1, 9), 1, "cpu", 1),
        ((16, 257), 4, "gpu", 4),
    ],
)
def test_cuts_are_equal_and_as_small_as_the_caches_want(
    shape: tuple[int, int], accum_steps: int, platform: str, expected: int
) -> None:
    assert n_micro_batches(shape, accum_steps, platform) == expected


@pytest.mark.parametrize("train", [None, TrainConfig()])
@pytest.mark.parametrize(
    ("fields", "platform", "attention", "is_scanned"),
    [
        ({"window": 5}, "cpu", "blocked", True),
        ({"window": 5, "n_ctx": 4096}, "gpu", "blocked", True),
        ({"window": 5}, "tpu", "reference", True),
        ({"window": 5, "window_layers": (0, 3)}, "cpu", "blocked", False),
        ({"positions": "rotary", "no_rotary_layers": (2,)}, "cpu", "blocked", False),
        ({"positions": "rotary", "no_rotary_layers": tuple(range(9))}, "cpu", "blocked", True),
        ({"positions": "alibi"}, "cpu", "reference", True),
        ({"attn_soft_cap": 5.0}, "tpu", "reference", True),
    ],
)
def test_what_kernels_do_not_do_takes_plain_forms_and_unlike_layers_are_not_scanned(
    fields: Any, platform: str, attention: str, is_scanned: bool, train: TrainConfig | None
) -> None:
    found = resolve(ModelConfig(n_layers=9, **fields), platform, train)
    assert (found.attention, found.scan_layers, found.remat) == (attention, is_scanned, True)
