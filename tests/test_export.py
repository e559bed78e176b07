"""What is exported to TransformerLens, without it; tests/parity loads it there."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from icl_jax.config import ModelConfig, UserError
from icl_jax.export import transformer_lens
from icl_jax.export.transformer_lens import hooked_config, hooked_state_dict
from icl_jax.model.positions import sinusoidal
from tests.model.random_params import random_params


def test_every_array_is_there_once() -> None:
    config = ModelConfig(n_layers=2, d_mlp=20, norm="layernorm", positions="standard", tied_unembedding=True)
    params = random_params(config)
    state = hooked_state_dict(params, config)
    assert {name for name in state if not name.split(".")[-1].startswith("b")} == {
        "embed.W_E", "pos_embed.W_pos", "unembed.W_U", "ln_final.w",
        *(f"blocks.{i}.attn.W_{letter}" for i in range(2) for letter in "QKVO"),
        *(f"blocks.{i}.{name}" for i in range(2) for name in ("ln1.w", "ln2.w", "mlp.W_in", "mlp.W_out")),
    }  # fmt: skip
    np.testing.assert_array_equal(state["unembed.W_U"], np.asarray(params["W_E"]).T)
    np.testing.assert_array_equal(state["pos_embed.W_pos"], sinusoidal(config.n_ctx, config.d_model))
    np.testing.assert_array_equal(state["blocks.1.attn.W_K"], params["W_K"][1])
    np.testing.assert_array_equal(state["blocks.1.ln2.w"], params["ln2_w"][1])
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert not any(state[name].any() for name in state if name.split(".")[-1].startswith("b"))
    assert not any(np.shares_memory(array, np.asarray(params["W_E"])) for array in state.values())


@pytest.mark.parametrize("field", [{"smeared_keys": True}, {"smear_gate": True}, {"key_offset": 3}])
def test_what_looks_back_by_other_ways_than_attention_cannot_go_along(field: dict[str, Any]) -> None:
    config = ModelConfig(**field)
    [(name, value)] = field.items()
    for convert in (lambda: hooked_config(config), lambda: hooked_state_dict(random_params(config), config)):
        with pytest.raises(UserError, match=rf"model\.{name} = {str(value).lower()}: TransformerLens has no"):
            convert()


def test_keys_that_heads_share_are_there_for_each_and_a_shared_norm_twice() -> None:
    config = ModelConfig(
        n_layers=2, n_heads=4, n_kv_heads=2, d_mlp=9, norm="layernorm", parallel_residual="one_norm",
        biases=("b_K", "b_O", "b_U"),
    )  # fmt: skip
    params = random_params(config)
    state = hooked_state_dict(params, config)
    for head in range(4):
        np.testing.assert_array_equal(state["blocks.1.attn.W_K"][head], params["W_K"][1, head // 2])
        np.testing.assert_array_equal(state["blocks.0.attn.b_K"][head], params["b_K"][0, head // 2])
    np.testing.assert_array_equal(state["blocks.1.ln2.w"], params["ln1_w"][1])
    np.testing.assert_array_equal(state["unembed.b_U"], params["b_U"])
    assert not state["blocks.0.attn.b_Q"].any()


FORMS = {
    "n_layers", "d_model", "n_heads", "d_head", "n_kv_heads", "d_mlp", "activation", "gated_mlp", "biases", "n_ctx",
    "vocab_size", "positions", "position_embedding", "rotary_base", "rotary_dim", "window", "window_layers",
    "attn_soft_cap", "logit_soft_cap", "norm", "norm_eps", "parallel_residual", "tied_unembedding",
}  # fmt: skip
NOT_OF_THE_MODEL = {"init_std", "compute_dtype", "attention", "loss_chunk", "rotary_factor", "rotary_original_ctx",
                    "rotary_low_turns", "rotary_high_turns"}  # fmt: skip


def test_nothing_of_a_model_is_silently_left_out() -> None:
    """A new field of the config is given to TransformerLens or refused, on purpose."""
    known = FORMS | NOT_OF_THE_MODEL | set(transformer_lens._MISSING)
    assert {field.name for field in dataclasses.fields(ModelConfig)} == known


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"qk_norm": "head"}, "model.qk_norm = 'head': TransformerLens has no such norms of queries and keys"),
        ({"norm_position": "post"}, "model.norm_position = 'post': TransformerLens has no such norms"),
        ({"activation": "relu2", "d_mlp": 8}, "model.activation = 'relu2': TransformerLens has no such activation"),
        ({"positions": "rotary", "no_rotary_layers": (1,)}, "model.no_rotary_layers = (1,): TransformerLens has no"),
        ({"gated_mlp": True, "d_mlp": 8, "biases": ("b_in",)}, "model.biases = ('b_in',): TransformerLens has no b_in"),
    ],
)
def test_what_it_has_no_form_for_is_refused_by_name(fields: Any, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        hooked_config(ModelConfig(**fields))
