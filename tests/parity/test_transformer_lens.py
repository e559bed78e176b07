"""Against TransformerLens, the same weights in both: an implementation that shares no code with this one."""

import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.analysis import ablate, direct_logit_attribution, duplicate_token, induction_stripe, previous_token
from icl_jax.config import ModelConfig, UserError
from icl_jax.export.transformer_lens import hooked_config
from icl_jax.importing.checkpoint import open_checkpoint
from icl_jax.importing.map_weights import map_weights
from icl_jax.maths.activations import as_jax
from icl_jax.measures.circuits import centred_unembedding, fold_norms, ov_circuit, ov_matrix, qk_matrix
from icl_jax.measures.composition import composition_scores
from icl_jax.measures.copying import copying_eigenvalue
from icl_jax.model.forward import forward, run_with_cache
from icl_jax.model.params import Params
from tests.analysis.small_runs import random_run
from tests.hand_built import induction_model, repeated_rows
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.random_params import random_params, random_tokens
from tests.parity.hooked import hooked_transformer, import_transformer_lens, to_jax, to_torch
from tests.train.runs import command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ci,
    # TransformerLens 3 announces what version 4 has done: that is why the extra pins 3.
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning"),
]
import_transformer_lens()

WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")
T = 41


def _config(**changes: Any) -> ModelConfig:
    fields = {"n_layers": 2, "d_model": 24, "n_heads": 3, "n_ctx": T, "vocab_size": 37, "position_embedding": "learned"}
    return ModelConfig(**(fields | changes))


def _exported() -> list[ModelConfig]:
    """Every architecture that TransformerLens has a form for."""
    found = []
    for fields in (OPTIONS | FAMILIES).values():
        with contextlib.suppress(UserError):
            config = _config(**fields)
            hooked_config(config)
            found.append(config)
    assert len(found) >= 15
    return found


CONFIGS = [
    *(
        _config(positions=positions, norm=norm, d_mlp=d_mlp)
        for positions, norm, d_mlp in itertools.product(
            ["shortformer", "standard", "rotary"], ["none", "layernorm", "rmsnorm"], [0, 29]
        )
    ),
    _config(position_embedding="sinusoidal", tied_unembedding=True, norm="layernorm"),
    _config(n_layers=0),
    _config(n_layers=3),
    *_exported(),
    _config(positions="alibi", n_heads=4),
    _config(activation="solu_ln", d_mlp=29, norm="layernorm"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.n_layers}-{c.positions}-{c.norm}-{c.d_mlp}")
def test_logits_and_activations(config: ModelConfig) -> None:
    params, tokens = random_params(config), random_tokens(config, 2, T)
    logits, cache = run_with_cache(params, tokens, config)
    their_logits, theirs = hooked_transformer(params, config).run_with_cache(to_torch(tokens))
    np.testing.assert_allclose(logits, to_jax(their_logits), atol=1e-4)
    for layer in range(config.n_layers):
        np.testing.assert_allclose(cache["pattern", layer], to_jax(theirs["pattern", layer]), atol=1e-5)
        np.testing.assert_allclose(cache["resid_post", layer], to_jax(theirs["resid_post", layer]), atol=1e-4)
        if config.d_mlp and config.parallel_residual == "none":
            np.testing.assert_allclose(cache["resid_mid", layer], to_jax(theirs["resid_mid", layer]), atol=1e-4)
            np.testing.assert_allclose(cache["mlp_out", layer], to_jax(theirs["mlp_out", layer]), atol=1e-4)
        for name in ("q", "k", "v", "z"):
            ours = jnp.swapaxes(cache[name, layer], 1, 2)
            their_name = f"rot_{name}" if config.positions == "rotary" and name in "qk" else name
            np.testing.assert_allclose(ours, to_jax(theirs[their_name, layer]), atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [_config(d_mlp=29, norm="layernorm", positions="standard"), _config(positions="rotary", tied_unembedding=True)],
    ids=lambda c: c.positions,
)
def test_an_exported_run_loads_by_the_lines_that_are_printed(config: ModelConfig, tmp_path: Path) -> None:
    run = random_run(tmp_path / "run", config, [0, 7])
    status, out, err = command("export", run.path, "--to", "transformer-lens", "--step", "0")
    assert (status, err) == (0, "")
    names: dict[str, Any] = {}
    exec(compile("\n".join(out.splitlines()[2:]), "printed", "exec"), names)
    tokens = random_tokens(config, 2, T)
    logits = forward(random_params(config, seed=0), tokens, config)
    np.testing.assert_allclose(logits, to_jax(names["model"](to_torch(tokens))), atol=1e-4)


_SAVED: dict[str, dict[str, Any]] = {
    "attn-only": {"attn_only": True, "normalization_type": "LN"},
    "shortformer": {"attn_only": True, "normalization_type": None, "positional_embedding_type": "shortformer"},
    "gelu, folded": {"act_fn": "gelu_new", "d_mlp": 29, "normalization_type": "LNPre"},
    "solu": {"act_fn": "solu_ln", "d_mlp": 29, "normalization_type": "LN"},
}  # fmt: skip


@pytest.mark.parametrize("fields", _SAVED.values(), ids=_SAVED)
def test_a_pth_that_it_saves_is_imported_and_goes_back(fields: dict[str, Any], tmp_path: Path) -> None:
    lens = import_transformer_lens()
    import torch

    torch.manual_seed(0)
    sizes = {"n_layers": 2, "d_model": 24, "n_heads": 3, "d_head": 8, "n_ctx": T, "d_vocab": 37, "device": "cpu"}
    model = lens.HookedTransformer(lens.HookedTransformerConfig(**sizes | fields)).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            values.copy_(0.3 * torch.randn_like(values) + float(name.endswith(("ln.w", "ln1.w", "ln2.w", "final.w"))))
    torch.save(model.state_dict(), tmp_path / "model_final.pth")
    (tmp_path / "config.json").write_text(json.dumps(model.cfg.to_dict(), default=str))
    ours, params = map_weights(open_checkpoint(tmp_path))
    tokens = random_tokens(ours, 2, T)
    theirs = to_jax(model(to_torch(tokens)))
    np.testing.assert_allclose(forward(as_jax(params), tokens, ours), theirs, atol=1e-4)
    again = hooked_transformer(as_jax(params), ours)
    np.testing.assert_allclose(to_jax(again(to_torch(tokens))), theirs, atol=1e-4)
    if fields["normalization_type"] != "LN":  # else the norms' biases are folded into the weights
        before, after = model.state_dict(), again.state_dict()
        for name in before.keys() - {n for n in before if n.endswith(("mask", "IGNORE"))}:
            np.testing.assert_array_equal(to_jax(before[name]), to_jax(after[name]), err_msg=name)


def test_composition_scores() -> None:
    config = _config(n_layers=3, norm="none")
    params = random_params(config)
    scores = composition_scores(*(np.asarray(params[name]) for name in WEIGHTS))
    model = hooked_transformer(params, config)
    for mode, values in zip("QKV", scores, strict=True):
        # They put zero where there is nothing to compose.
        np.testing.assert_allclose(np.nan_to_num(values), to_jax(model.all_composition_scores(mode)), atol=1e-5)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_folded_norms(norm: str) -> None:
    config = _config(norm=norm, d_mlp=29, positions="standard")
    params = random_params(config)
    ours = fold_norms({name: np.asarray(value) for name, value in params.items()}, config)
    ours["W_U"] = centred_unembedding(ours)
    model = hooked_transformer(params, config)
    is_centred = norm == "layernorm"
    model.process_weights_(fold_ln=True, center_writing_weights=is_centred, center_unembed=True)
    for name, value in ours.items():
        np.testing.assert_allclose(value, to_jax(getattr(model, name)), atol=1e-5, err_msg=name)


def test_factored_matrices() -> None:
    config = _config(norm="none", vocab_size=50)
    params = random_params(config)
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    model = hooked_transformer(params, config)
    for ours, theirs in ((qk_matrix(weights), model.QK), (ov_matrix(weights), model.OV)):
        np.testing.assert_allclose(ours.AB, to_jax(theirs.AB), atol=1e-5)
        np.testing.assert_allclose(ours.norm(), to_jax(theirs.norm()), rtol=1e-4)
        np.testing.assert_allclose(ours.singular_values(), to_jax(theirs.S)[..., :8], rtol=1e-3, atol=1e-5)
        for index in np.ndindex(2, 3):
            pair = [
                np.sort_complex(np.asarray(x)) for x in (ours[index].eigenvalues(), to_jax(theirs[index].eigenvalues))
            ]
            np.testing.assert_allclose(pair[0].sum(), pair[1].sum(), atol=1e-4)
            np.testing.assert_allclose(np.sort(np.abs(pair[0])), np.sort(np.abs(pair[1])), rtol=1e-3, atol=1e-4)
    W_U = weights["W_U"]
    model.unembed.W_U.data = to_torch_float(W_U - W_U.mean(axis=1, keepdims=True))
    eigenvalues = to_jax((model.W_E @ model.OV @ model.W_U).eigenvalues)
    expected = eigenvalues.sum(-1).real / jnp.abs(eigenvalues).sum(-1)
    np.testing.assert_allclose(copying_eigenvalue(ov_circuit(weights)), expected, atol=1e-3)


def to_torch_float(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.asarray(array, np.float32))


def _their_stripes(params: Params, config: ModelConfig, tokens: jax.Array, offset: int) -> np.ndarray:
    """A diagonal of every head's pattern: [layer, row, head, entry]."""
    _, cache = hooked_transformer(params, config).run_with_cache(to_torch(tokens))
    patterns = np.stack([np.asarray(to_jax(cache["pattern", layer])) for layer in range(config.n_layers)])
    return np.diagonal(patterns, offset, -2, -1)


def test_stripes_of_the_hand_built_model() -> None:
    params, config = induction_model()
    tokens = jnp.asarray(repeated_rows(repeat_len=50, n_repeats=2))
    ours = induction_stripe(params, tokens, config)
    np.testing.assert_allclose(ours, _their_stripes(params, config, tokens, -49).mean(axis=(1, 3)), atol=1e-5)
    np.testing.assert_allclose(ours, [[0], [51 / 52]], atol=1e-4)


def test_stripes_of_a_random_model() -> None:
    config = _config()
    params = random_params(config)
    tokens = jnp.asarray(repeated_rows(T, vocab_size=37, n_sequences=3, repeat_len=20, n_repeats=2))
    induction, duplicate, previous = (_their_stripes(params, config, tokens, offset) for offset in (-19, -20, -1))
    np.testing.assert_allclose(induction_stripe(params, tokens, config), induction.mean(axis=(1, 3)), atol=1e-5)
    # The first entry of theirs is attention to BOS, which is no duplicate.
    np.testing.assert_allclose(duplicate_token(params, tokens, config), duplicate[..., 1:].mean(axis=(1, 3)), atol=1e-5)
    np.testing.assert_allclose(previous_token(params, tokens, config), previous.mean(axis=(1, 3)), atol=1e-5)


def test_their_head_detector_on_our_patterns() -> None:
    """`mul` on BOS + 50 x 2: R / (2R + 1) for an ideal head."""
    from transformer_lens.head_detector import (
        get_induction_head_detection_pattern,
        get_previous_token_head_detection_pattern,
    )

    params, config = induction_model()
    tokens = jnp.asarray(repeated_rows(repeat_len=50, n_repeats=2, n_sequences=1))
    _, cache = run_with_cache(params, tokens, config, ("pattern",))
    previous, induction = (np.asarray(cache["pattern", layer][0, 0]) for layer in range(2))
    theirs = to_jax(get_induction_head_detection_pattern(to_torch(tokens)))
    assert float((induction * theirs).sum() / induction.sum()) == pytest.approx(0.4950, abs=1e-3)
    theirs = to_jax(get_previous_token_head_detection_pattern(to_torch(tokens)))
    assert float((previous * theirs).sum() / previous.sum()) == pytest.approx(100 / 101, abs=1e-4)


ABLATED = [_config(norm="layernorm"), _config(norm="none"), _config(d_mlp=29)]


@pytest.mark.parametrize("config", ABLATED, ids=lambda c: c.norm)
def test_losses_under_ablation(config: ModelConfig) -> None:
    """Of every head, by all four kinds; in theirs everything after the head is computed again."""
    params, rows = random_params(config), random_tokens(config, 3, T + 1)
    model = hooked_transformer(params, config)
    tokens, targets = to_torch(rows[:, :-1]), to_torch(rows[:, 1:])
    _, intact = model.run_with_cache(tokens)
    ours = jax.jit(lambda params, rows: ablate(params, rows, config))(params, rows)

    def losses(hooks: list[Any]) -> jax.Array:
        log_p = model.run_with_hooks(tokens, fwd_hooks=hooks).log_softmax(dim=-1)
        return to_jax(-log_p.gather(-1, targets[..., None])[..., 0])

    np.testing.assert_allclose(ours["intact"], losses([]), atol=1e-4)
    for layer, head in np.ndindex(config.n_layers, config.n_heads):
        z_of_head = intact["z", layer][:, :, head]
        new = {"full": 0, "pattern_preserving": 0, "mean": z_of_head.mean(dim=0), "resample": z_of_head.roll(1, dims=0)}
        for kind, value in new.items():

            def replace(z: Any, hook: Any, head: int = head, value: Any = value) -> Any:
                z[:, :, head] = value
                return z

            hooks: list[Any] = [(f"blocks.{layer}.attn.hook_z", replace)]
            if kind == "pattern_preserving":
                names = [f"blocks.{i}.attn.hook_pattern" for i in range(config.n_layers)]
                hooks += [(name, lambda _pattern, hook: intact[hook.name]) for name in names]
            np.testing.assert_allclose(
                ours[kind][layer, head], losses(hooks), atol=1e-4, err_msg=f"{kind} {layer}.{head}"
            )
    assert jnp.abs(ours["full"][0] - ours["pattern_preserving"][0]).max() > 1e-2


@pytest.mark.parametrize("config", ABLATED, ids=lambda c: c.norm)
def test_direct_logit_attribution(config: ModelConfig) -> None:
    # They cannot fold norms into what reads positions as well; standard positions go through the norm.
    config = dataclasses.replace(config, positions="standard")
    params, tokens = random_params(config), random_tokens(config, 3, T)
    model = hooked_transformer(params, config)
    model.process_weights_(fold_ln=True, center_writing_weights=config.norm == "layernorm", center_unembed=True)
    _, cache = model.run_with_cache(to_torch(tokens[:, :-1]))
    ours = direct_logit_attribution(params, tokens, config)

    def theirs(stack: Any) -> jax.Array:
        return jnp.moveaxis(to_jax(cache.logit_attrs(stack, to_torch(tokens[:, 1:]))), 0, -1)

    np.testing.assert_allclose(ours.embedding, theirs(cache["resid_pre", 0][None])[..., 0], atol=1e-4)
    cache.compute_head_results()
    heads = theirs(cache.stack_head_results(layer=-1, incl_remainder=False))
    np.testing.assert_allclose(ours.heads.reshape(heads.shape), heads, atol=1e-4)
    if config.d_mlp:
        import torch

        mlps = theirs(torch.stack([cache["mlp_out", layer] for layer in range(config.n_layers)]))
        np.testing.assert_allclose(ours.mlps, mlps, atol=1e-4)
