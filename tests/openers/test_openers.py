"""What `icl-jax export --to transformers` writes, in nnsight, lm-eval and TransformerLens 4: the same numbers."""

import math
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.model.forward import run_with_cache
from icl_jax.model.loss import losses
from tests.analysis.small_runs import make_run, random_rows
from tests.hub_folders import ODD, SIZES, T, exported, own_remote_code  # noqa: F401 - a fixture
from tests.model.random_params import random_params, random_tokens
from tests.train.runs import command

pytestmark = [pytest.mark.usefixtures("own_remote_code"), pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
_WHY = "needs the extra `openers`: make test-openers"
torch = pytest.importorskip("torch", reason=_WHY)
transformers = pytest.importorskip("transformers", reason=_WHY)
nnsight = pytest.importorskip("nnsight", reason=_WHY)
lm_eval = pytest.importorskip("lm_eval", reason=_WHY)


def _opened(folder: Path, model: ModelConfig) -> Any:
    path = exported(folder, model)
    return transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()


def test_nnsight_sees_and_changes_it(tmp_path: Path) -> None:
    model = ModelConfig(**SIZES | ODD)
    theirs = nnsight.NNsight(_opened(tmp_path, model))
    tokens = random_tokens(model, 2, T)
    logits, seen = run_with_cache(random_params(model), tokens, model, ("z",))
    ids = torch.from_numpy(np.array(tokens, np.int64))
    with theirs.trace(ids):
        z = theirs.model.layers[1].self_attn.o_proj.input.save()
        found = theirs.lm_head.output.save()
    heads = np.swapaxes(seen["z", 1], 1, 2).reshape(2, T, -1)
    np.testing.assert_allclose(z.detach().numpy(), heads, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.detach().numpy(), logits, atol=1e-4, rtol=0)
    with theirs.trace(ids):
        theirs.model.layers[0].self_attn.o_proj.input[:] = 0
        changed = theirs.lm_head.output.save()
    assert (changed - found).abs().max() > 0.1


def test_lm_eval_runs_a_task(tmp_path: Path, tokenizer_json: str) -> None:
    from datasets import Dataset
    from tokenizers import Tokenizer

    model = ModelConfig(**SIZES | ODD | {"vocab_size": 263})
    run = make_run(tmp_path / "run", model, {3: random_params(model)}, random_rows(model, 6), tokenizer_json)
    assert command("export", run.path, "--to", "transformers", "--out", tmp_path / "hub")[0] == 0
    docs = [{"text": "the name of", "choices": [" a", " the class"], "gold": i % 2} for i in range(3)]
    task = {
        "task": "tiny", "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "text", "doc_to_choice": "choices", "doc_to_target": "gold",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    found = lm_eval.simple_evaluate(
        model="hf", tasks=[task], bootstrap_iters=0, batch_size=2, device="cpu",
        model_args=f"pretrained={tmp_path}/hub/step3,trust_remote_code=True,add_bos_token=True,dtype=float32",
    )  # fmt: skip
    said = [log_p for ((log_p, _),) in found["samples"]["tiny"][0]["resps"]]
    tokenizer = Tokenizer.from_str(tokenizer_json)
    for log_p, choice in zip(said, docs[0]["choices"], strict=True):
        before, whole = (tokenizer.encode(text).ids for text in (docs[0]["text"], docs[0]["text"] + choice))
        row = jnp.asarray([[0, *whole]], jnp.int32)
        expected = -float(losses(random_params(model), row, model)[0, len(before) :].sum())
        assert log_p == pytest.approx(expected, abs=1e-4)
    assert not math.isnan(found["results"]["tiny"]["acc,none"])


LENS: dict[str, dict[str, Any]] = {
    "attention only": {},
    "smeared, norms on both sides": ODD,
    "parallel, one norm, gated": {"parallel_residual": "one_norm", "d_mlp": 17, "gated_mlp": True, "biases": ("b_Q",)},
    "grouped keys, ALiBi": {"positions": "alibi", "n_heads": 4, "n_kv_heads": 2, "d_mlp": 17},
}  # fmt: skip


@pytest.mark.parametrize("fields", LENS.values(), ids=LENS)
def test_transformer_lens_4(fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(**SIZES | fields)
    path = exported(tmp_path, model)
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.delitem(sys.modules, "transformer_lens_adapter", raising=False)
    from transformer_lens_adapter import open_bridge

    bridge = open_bridge(str(path))
    tokens = random_tokens(model, 2, T)
    logits, seen = run_with_cache(random_params(model), tokens, model, ("pattern", "z", "resid_post"))
    ids = torch.from_numpy(np.array(tokens, np.int64))
    theirs, cache = bridge.run_with_cache(ids)
    np.testing.assert_allclose(theirs.detach().numpy(), logits, atol=1e-4, rtol=0)
    for layer in range(2):
        np.testing.assert_allclose(cache["pattern", layer].detach(), seen["pattern", layer], atol=1e-5, rtol=0)
        np.testing.assert_allclose(cache["z", layer].detach(), np.swapaxes(seen["z", layer], 1, 2), atol=1e-4, rtol=0)
        np.testing.assert_allclose(cache["resid_post", layer].detach(), seen["resid_post", layer], atol=1e-4, rtol=0)
    hooks = [("blocks.0.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))]
    assert (bridge.run_with_hooks(ids, fwd_hooks=hooks) - theirs).abs().max() > 0.1
