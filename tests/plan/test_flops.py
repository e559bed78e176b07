"""Arithmetic of a step against counts made by hand."""

from typing import Any

from icl_jax.config import Config, ModelConfig, TrainConfig
from icl_jax.plan.flops import executed_flops, step_flops


def _config(n_layers: int, d_mlp: int = 0, **fields: Any) -> Config:
    model = ModelConfig(n_layers=n_layers, d_model=6, n_heads=3, d_mlp=d_mlp, n_ctx=9, vocab_size=11, **fields)
    return Config(model=model, train=TrainConfig(batch_size=4))


def test_without_layers_only_the_unembedding_counts() -> None:
    # 4 rows x 9 tokens x 6 x 11 products of two operations, three times: forward, to the weights, to the residual.
    assert step_flops(_config(0)) == 3 * 4 * 9 * 2 * 6 * 11
    assert executed_flops(_config(0)) == step_flops(_config(0))


def test_layers_add_projections_visible_keys_and_mlps() -> None:
    # Q, K, V and O of 6 x 6; scores and values of 6 with 1 + 2 + ... + 9 = 45 keys in a row of 9 tokens.
    attention = 3 * 4 * (9 * 2 * 4 * 6 * 6 + 2 * 2 * 6 * 45)
    assert step_flops(_config(1)) - step_flops(_config(0)) == attention
    assert step_flops(_config(2)) - step_flops(_config(0)) == 2 * attention
    assert step_flops(_config(1, d_mlp=7)) - step_flops(_config(1)) == 3 * 4 * 9 * 2 * 2 * 6 * 7


def test_what_is_computed_again() -> None:
    # The kernel's backward pass: 7 products of the size of the scores where 4 are needed.
    scores = 4 * 2 * 6 * 45
    assert executed_flops(_config(2)) - step_flops(_config(2)) == 2 * 3 * scores
    # Nine layers are under remat: all of them forward once more.
    layer = 4 * 9 * 2 * 4 * 6 * 6 + 2 * scores
    assert executed_flops(_config(9)) - step_flops(_config(9)) == 9 * (3 * scores + layer)


def test_shared_keys_gates_wide_heads_and_windows_count_as_they_are() -> None:
    gated = step_flops(_config(1, d_mlp=7, gated_mlp=True)) - step_flops(_config(1, d_mlp=7))
    assert gated == 3 * 4 * 9 * 2 * 6 * 7
    # One head of keys and of values of width 4 in place of three; biases multiply nothing.
    wide = _config(1, d_head=4)
    assert step_flops(wide) - step_flops(_config(0)) == 3 * 4 * (9 * 2 * 4 * 6 * 12 + 2 * 2 * 12 * 45)
    shared = _config(1, d_head=4, n_kv_heads=1, biases=("b_Q", "b_U"))
    assert step_flops(wide) - step_flops(shared) == 3 * 4 * 9 * 2 * 2 * 6 * 8
    # With a window of 2 a row's queries see 1 + 2 + 2 + ... = 17 keys.
    windowed = _config(2, window=2, window_layers=(1,))
    assert step_flops(_config(2)) - step_flops(windowed) == 3 * 4 * 2 * 2 * 6 * (45 - 17)
