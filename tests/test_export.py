"""What is exported to TransformerLens, without it; tests/parity loads it there."""

import numpy as np
import pytest

from icl_jax.config import ModelConfig, UserError
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


def test_smeared_keys_cannot_go_along() -> None:
    config = ModelConfig(smeared_keys=True)
    for convert in (lambda: hooked_config(config), lambda: hooked_state_dict(random_params(config), config)):
        with pytest.raises(UserError, match=r"model\.smeared_keys = true"):
            convert()
