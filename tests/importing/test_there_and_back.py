"""A model in the form of a family of `transformers`, and read as a stranger's: the same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from icl_jax.config import ModelConfig
from icl_jax.export.as_family import form_of
from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.families.table import TABLE
from icl_jax.importing.map_weights import map_weights
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.class_cases import CASES
from tests.model.random_params import random_params

SIZES = {"n_layers": 2, "d_model": 24, "n_heads": 3, "n_ctx": 41, "vocab_size": 37, "position_embedding": "learned"}


ALL: dict[str, tuple[str | None, dict[str, Any]]] = {
    name: (None, fields) for name, fields in (OPTIONS | FAMILIES).items()
}


@pytest.mark.parametrize(("kind", "fields"), [*ALL.values(), *CASES.values()], ids=[*ALL, *CASES])
def test_the_class_is_exact_and_what_is_imported_again_has_the_same_bits(
    kind: str | None, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = ModelConfig(**SIZES | fields)
    form = form_of(model)
    assert kind in (None, form.family.name)
    params = {name: np.asarray(array) for name, array in random_params(model).items()}
    (tmp_path / "config.json").write_text(json.dumps(form.config))
    save_file(form.tensors(params), tmp_path / "model.safetensors")
    _, again = map_weights(open_checkpoint(tmp_path), n_ctx=41)
    for name, array in params.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    assert not any(again[name].any() for name in again.keys() - params.keys())  # biases that the class has besides


def test_every_class_is_tried() -> None:
    assert {kind for kind, _ in CASES.values()} == {family.name for family in TABLE if family.config is not None}
