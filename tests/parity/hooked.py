"""The same weights in this package and in TransformerLens."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.export.transformer_lens import hooked_config, hooked_state_dict
from icl_jax.model.params import Params


def import_transformer_lens() -> Any:
    """TransformerLens, or a skip where it is not installed. What its imports warn about is not ours to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformer_lens", reason="needs the extra `parity`: make test-parity")


def hooked_transformer(params: Params, config: ModelConfig) -> Any:
    lens = import_transformer_lens()
    import torch

    torch.manual_seed(0)
    model = lens.HookedTransformer(lens.HookedTransformerConfig(**hooked_config(config), device="cpu"))
    state = {name: torch.from_numpy(value) for name, value in hooked_state_dict(params, config).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    buffers = ("attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos")
    assert unexpected == []
    assert [name for name in missing if not name.endswith(buffers)] == []
    return model.eval()


def to_torch(tokens: jax.Array) -> Any:
    import torch

    return torch.from_numpy(np.array(tokens, np.int64))


def to_jax(tensor: Any) -> jax.Array:
    return jnp.asarray(tensor.detach().numpy())
