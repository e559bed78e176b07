"""What `icl-jax export --to transformers` writes, opened by transformers: the same logits, and what rows may be."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.export.as_family import form_of
from icl_jax.model.forward import run_with_cache
from icl_jax.model.loss import losses
from tests.hub_folders import ODD, SIZES, T, exported, own_remote_code  # noqa: F401 - a fixture
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.class_cases import CASES
from tests.model.random_params import random_params, random_tokens

pytestmark = [
    pytest.mark.usefixtures("own_remote_code"),
    pytest.mark.slow,
    pytest.mark.ci,
    pytest.mark.filterwarnings("ignore"),
]
torch = pytest.importorskip("torch", reason="needs the extra `parity`: make test-parity")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`: make test-parity")

ALL = (OPTIONS | FAMILIES) | {name: fields for name, (_, fields) in CASES.items()}


def opened(folder: Path, model: ModelConfig) -> Any:
    found, info = transformers.AutoModelForCausalLM.from_pretrained(
        exported(folder, model), trust_remote_code=form_of(model).is_own, attn_implementation="eager",
        output_loading_info=True,
    )  # fmt: skip
    assert not any(info.values()), info
    return found.eval()


@pytest.mark.parametrize("fields", ALL.values(), ids=ALL)
def test_logits_and_patterns(fields: dict[str, Any], tmp_path: Path) -> None:
    model = ModelConfig(**SIZES | fields)
    tokens = random_tokens(model, 2, T)
    logits, seen = run_with_cache(random_params(model), tokens, model, ("pattern",))
    with torch.no_grad():
        theirs = opened(tmp_path, model)(torch.from_numpy(np.array(tokens, np.int64)), output_attentions=True)
    np.testing.assert_allclose(theirs.logits.numpy(), logits, atol=1e-4, rtol=0)
    assert len(theirs.attentions) == model.n_layers
    for layer, pattern in enumerate(theirs.attentions):
        np.testing.assert_allclose(pattern.numpy(), seen["pattern", layer], atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["shortformer", "rotary", "alibi"])
def test_padding_changes_nothing_and_generating_goes_on_by_the_row(positions: str, tmp_path: Path) -> None:
    model = ModelConfig(**SIZES | ODD | {"positions": positions, "position_embedding": "sinusoidal", "window": 5})
    model = replace(model, key_offset=2, smear_gate=True)
    theirs = opened(tmp_path, model)
    row = torch.from_numpy(np.array(random_tokens(model, 1, 12), np.int64))
    padding = torch.zeros((1, 4), dtype=torch.long)
    with torch.no_grad():
        alone = theirs(row, labels=row)
        for places in ([padding, row], [row, padding]):
            mask = torch.cat([torch.full_like(x, int(x is row)) for x in places], dim=1)
            padded = theirs(torch.cat(places, dim=1), attention_mask=mask).logits
            np.testing.assert_allclose(padded[mask.bool()].numpy(), alone.logits[0].numpy(), atol=1e-5, rtol=0)
        generated = theirs.generate(row, max_new_tokens=3, do_sample=False, eos_token_id=None)
        for n in range(12, 15):
            assert theirs(generated[:, :n]).logits[0, -1].argmax() == generated[0, n]
    loss = losses(random_params(model), jnp.asarray(row.numpy(), jnp.int32), model).mean()
    assert float(alone.loss) == pytest.approx(float(loss), abs=1e-5)
