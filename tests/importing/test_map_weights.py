"""Weights in the layout of their family: the same logits here as by a forward pass that reads that layout."""

from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.map_weights import map_weights
from icl_jax.model.forward import forward
from tests.importing import written


@pytest.mark.parametrize("kind", written.CONFIGS)
def test_the_logits_are_those_of_the_family(kind: str, tmp_path: Path) -> None:
    tensors = written.random_tensors(kind, seed=3)
    model, params = map_weights(open_checkpoint(written.write(tmp_path / "m", kind, tensors)), n_ctx=written.T)
    assert model.n_ctx == written.T
    ids = np.random.default_rng(0).integers(0, written.VOCAB, written.T)
    found = forward({name: jnp.asarray(array) for name, array in params.items()}, jnp.asarray(ids[None]), model)
    np.testing.assert_allclose(found[0], written.logits(kind, tensors, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_weights_stay_in_the_type_of_the_files_unless_folding_makes_more_bits(dtype: type, tmp_path: Path) -> None:
    tensors = {name: array.astype(dtype) for name, array in written.random_tensors("gpt2", seed=3).items()}
    _, params = map_weights(open_checkpoint(written.write(tmp_path / "m", "gpt2", tensors)))
    assert params["W_E"].dtype == params["W_O"].dtype == params["W_in"].dtype == dtype
    assert params["b_Q"].dtype == np.float32  # a LayerNorm's bias is in it
    np.testing.assert_array_equal(params["W_E"], tensors["wte.weight"])
