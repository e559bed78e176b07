"""The least that a run needs, against the parameters that a model has and processes that share them."""

from typing import Any

import pytest

from icl_jax import process
from icl_jax.config import UserError
from icl_jax.model.params import n_params
from icl_jax.train.sizes import check_memory, least_params
from tests.model.architectures import FAMILIES, OPTIONS
from tests.train.runs import tiny_config


@pytest.mark.parametrize("name", OPTIONS | FAMILIES)
def test_it_is_no_more_than_the_model_has(name: str) -> None:
    config = tiny_config(model={"d_model": 24, "smeared_keys": False, **(OPTIONS | FAMILIES)[name]})
    assert 0.7 * n_params(config.model) < least_params(config) <= n_params(config.model)


def test_processes_share_what_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    sharded: dict[str, Any] = {"parallel": "mesh", "fsdp": 4}
    config = tiny_config(model={"d_model": 768, "d_mlp": 3072}, train=sharded)
    monkeypatch.setattr(process, "memory_bytes", lambda: 4 * least_params(config) // 3)
    check_memory(config, 4)
    with pytest.raises(UserError, match="the parameters would need"):
        check_memory(config, 2)
