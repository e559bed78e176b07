"""The forward pass against an independent one in NumPy, and the properties that every model must have."""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_jax.config import ModelConfig
from icl_jax.model import execution
from icl_jax.model import forward as forward_module
from icl_jax.model.forward import final_resid, forward, unembedding_DV
from icl_jax.model.params import Params
from tests.model.random_params import random_params, random_tokens

B, T, N_CTX, H, E, M, V = 2, 11, 13, 5, 4, 17, 29
D = H * E


def _norm(x: np.ndarray, weight: np.ndarray | None, kind: str) -> np.ndarray:
    if kind == "none":
        return x
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def _rotated(x: np.ndarray, position: int) -> np.ndarray:
    half = len(x) // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = position / 10_000 ** (i / half)
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return out


def _positions(w: dict[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    if config.position_embedding == "learned":
        return w["W_pos"]
    half = config.d_model // 2
    table = np.empty((config.n_ctx, config.d_model))
    for t, i in itertools.product(range(config.n_ctx), range(half)):
        angle = t / 10_000 ** (i / (half - 1))
        table[t, i], table[t, half + i] = math.sin(angle), math.cos(angle)
    return table


def numpy_logits(params: Params, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """One row at a time, one head at a time, one query at a time, float64."""
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    pos = None if config.positions == "rotary" else _positions(w, config)[: tokens.shape[1]]
    out = []
    for row in tokens:
        resid = w["W_E"][row]
        if config.positions == "standard":
            resid = resid + pos
        for n in range(config.n_layers):
            x = _norm(resid, w["ln1_w"][n] if "ln1_w" in w else None, config.norm)
            x_qk = x + pos if config.positions == "shortformer" else x
            attn_out = np.zeros_like(resid)
            for h in range(config.n_heads):
                q, k, v = x_qk @ w["W_Q"][n, h], x_qk @ w["W_K"][n, h], x @ w["W_V"][n, h]
                if config.positions == "rotary":
                    q, k = (np.stack([_rotated(y[t], t) for t in range(len(row))]) for y in (q, k))
                if config.smeared_keys:
                    own = 1 / (1 + math.exp(-w["smear_alpha"][n, h]))
                    k = np.stack([k[0]] + [own * k[j] + (1 - own) * k[j - 1] for j in range(1, len(row))])
                for t in range(len(row)):
                    weight = np.exp(k[: t + 1] @ q[t] / math.sqrt(config.d_head))
                    attn_out[t] += (weight / weight.sum()) @ v[: t + 1] @ w["W_O"][n, h]
            resid = resid + attn_out
            if config.d_mlp:
                x = _norm(resid, w["ln2_w"][n] if "ln2_w" in w else None, config.norm)
                hidden = x @ w["W_in"][n]
                gelu = 0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
                resid = resid + gelu @ w["W_out"][n]
        x = _norm(resid, w.get("ln_final_w"), config.norm)
        out.append(x @ (w["W_E"].T if config.tied_unembedding else w["W_U"]))
    return np.stack(out)


def model_config(**fields: Any) -> ModelConfig:
    return ModelConfig(**{"d_model": D, "n_heads": H, "n_ctx": N_CTX, "vocab_size": V, **fields})


POSITIONS = [
    ("shortformer", "sinusoidal"),
    ("shortformer", "learned"),
    ("standard", "sinusoidal"),
    ("standard", "learned"),
    ("rotary", "sinusoidal"),
]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm", "none"])
@pytest.mark.parametrize(("positions", "position_embedding"), POSITIONS)
def test_logits_equal_the_independent_ones(positions: Any, position_embedding: Any, norm: Any) -> None:
    """All of the family: every combination of layers, MLP, smearing and tying under each positions and norm."""
    for n_layers, d_mlp, smeared_keys, tied in itertools.product((0, 1, 2, 3), (0, M), (False, True), (False, True)):
        if n_layers == 0 and (d_mlp or smeared_keys):
            continue
        config = model_config(
            n_layers=n_layers, d_mlp=d_mlp, smeared_keys=smeared_keys, tied_unembedding=tied, norm=norm,
            positions=positions, position_embedding=position_embedding, attention="reference",
        )  # fmt: skip
        params, tokens = random_params(config, seed=n_layers), random_tokens(config, B, T)
        expected = numpy_logits(params, np.asarray(tokens), config)
        np.testing.assert_allclose(forward(params, tokens, config), expected, rtol=1e-6, atol=1e-5, err_msg=str(config))


@pytest.mark.parametrize("attention", ["blocked", "cudnn", "splash", "auto"])
def test_every_attention_gives_the_same_logits(attention: Any) -> None:
    config = model_config(n_layers=2, d_mlp=M, smeared_keys=True, attention=attention)
    params, tokens = random_params(config), random_tokens(config, B, T)
    np.testing.assert_allclose(forward(params, tokens, config), numpy_logits(params, tokens, config), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "attention"), [("shortformer", "blocked"), ("rotary", "reference"), ("standard", "cudnn")]
)
def test_later_tokens_never_change_earlier_logits(positions: Any, attention: Any) -> None:
    config = model_config(n_layers=2, d_mlp=M, smeared_keys=True, positions=positions, attention=attention)
    params = random_params(config)
    run = jax.jit(lambda tokens: forward(params, tokens, config))

    @given(seed=st.integers(0, 2**16), first_changed=st.integers(0, T - 1))
    @settings(max_examples=12)
    def check(seed: int, first_changed: int) -> None:
        rng = np.random.default_rng(seed)
        tokens = rng.integers(0, V, (B, T), dtype=np.int32)
        other = tokens.copy()
        other[:, first_changed:] = (tokens[:, first_changed:] + rng.integers(1, V, (B, T - first_changed))) % V
        a, b = np.asarray(run(tokens)), np.asarray(run(other))
        np.testing.assert_array_equal(a[:, :first_changed], b[:, :first_changed])
        assert not np.allclose(a[:, first_changed], b[:, first_changed])

    check()


def test_no_gradient_flows_from_a_logit_to_a_later_token() -> None:
    """Causality by differentiation; and every earlier token does matter."""
    config = model_config(
        n_layers=2, d_mlp=M, smeared_keys=True, positions="standard", position_embedding="learned",
        attention="reference",
    )  # fmt: skip
    params, tokens = random_params(config), jnp.zeros((1, T), jnp.int32)

    def logits_TV(W_pos: jax.Array) -> jax.Array:
        return forward(params | {"W_pos": W_pos}, tokens, config)[0]

    sensitivity_TQ = np.abs(jax.jit(jax.jacrev(lambda x: logits_TV(x).sum(-1)))(params["W_pos"])).sum(-1)[:, :T]
    assert (sensitivity_TQ[np.triu_indices(T, k=1)] == 0).all()
    assert (sensitivity_TQ[np.tril_indices(T)] > 0).all()


def test_logits_do_not_depend_on_the_other_rows() -> None:
    """Heads of several rows are taken together by the blocked attention."""
    config = model_config(n_layers=2, d_mlp=M, smeared_keys=True, attention="blocked")
    params, tokens = random_params(config), random_tokens(config, 3, T)
    run = jax.jit(lambda tokens: forward(params, tokens, config))
    together = run(tokens)
    for i in range(3):
        np.testing.assert_allclose(run(tokens[i : i + 1])[0], together[i], atol=1e-5)


def test_a_shorter_row_is_the_beginning_of_a_longer_one() -> None:
    config = model_config(n_layers=2, smeared_keys=True, attention="reference")
    params, tokens = random_params(config), random_tokens(config, B, N_CTX)
    run = jax.jit(lambda tokens: forward(params, tokens, config))
    whole = run(tokens)
    for n in (1, T):
        np.testing.assert_allclose(run(tokens[:, :n]), whole[:, :n], atol=1e-5)


def test_alpha_of_20_is_attention_without_smearing() -> None:
    smeared = model_config(n_layers=2, smeared_keys=True)
    params = random_params(smeared)
    plain = {name: value for name, value in params.items() if name != "smear_alpha"}
    tokens = random_tokens(smeared, B, T)
    params["smear_alpha"] = jnp.full_like(params["smear_alpha"], 20.0)
    expected = forward(plain, tokens, dataclasses.replace(smeared, smeared_keys=False))
    np.testing.assert_allclose(forward(params, tokens, smeared), expected, atol=1e-6)
    params["smear_alpha"] = jnp.full_like(params["smear_alpha"], 3.0)
    assert not np.allclose(forward(params, tokens, smeared), expected, atol=1e-3)


def test_alpha_of_0_gives_scores_that_are_the_mean_of_both_keys() -> None:
    config = model_config(n_layers=1, smeared_keys=True)
    params, tokens = random_params(config), random_tokens(config, B, T)

    def scores(alpha: float) -> np.ndarray:
        return _scores(params | {"smear_alpha": jnp.full((1, H), alpha, jnp.float32)}, tokens, config)

    own, mean = scores(20.0), scores(0.0)
    is_visible = np.tril(np.ones((T, T), bool), k=0)
    for j in range(1, T):
        visible = is_visible[:, j]
        expected = (own[:, :, visible, j] + own[:, :, visible, j - 1]) / 2
        np.testing.assert_allclose(mean[:, :, visible, j], expected, atol=1e-5)
    np.testing.assert_allclose(mean[:, :, :, 0], own[:, :, :, 0], atol=1e-6)


def _scores(params: Params, tokens: jax.Array, config: ModelConfig) -> np.ndarray:
    _, cache = forward_module.run_with_cache(params, tokens, config, ("attn_scores",))
    return np.asarray(cache["attn_scores", 0])


def test_scanned_layers_equal_unrolled_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_config(n_layers=3, d_mlp=M, smeared_keys=True, attention="reference")
    params, tokens = random_params(config), random_tokens(config, B, T)

    def both() -> tuple[jax.Array, Params, bool]:
        def run(params: Params) -> tuple[jax.Array, jax.Array]:
            logits = forward(params, tokens, config)
            return jnp.sum(jnp.sin(logits)), logits

        traced = jax.jit(jax.value_and_grad(run, has_aux=True)).trace(params)
        is_scanned = any(eqn.primitive.name == "scan" for eqn in traced.jaxpr.jaxpr.eqns)
        (_, logits), grads = traced.lower().compile()(params)
        return logits, grads, is_scanned

    logits, grads, is_scanned = both()
    assert not is_scanned
    monkeypatch.setattr(execution, "_MAX_UNROLLED_LAYERS", 2)
    scanned_logits, scanned_grads, is_scanned = both()
    assert is_scanned
    np.testing.assert_allclose(scanned_logits, logits, atol=1e-5)
    for name, grad in grads.items():
        assert np.abs(grad).max() > 1e-3
        np.testing.assert_allclose(scanned_grads[name], grad, atol=1e-4, rtol=1e-4, err_msg=name)


def test_bfloat16_activations_stay_close_and_logits_are_float32() -> None:
    config = model_config(n_layers=2, d_mlp=M, smeared_keys=True, attention="reference")
    params, tokens = random_params(config), random_tokens(config, B, T)
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    exact, rounded = forward(params, tokens, config), forward(params, tokens, half)
    assert final_resid(params, tokens, half).dtype == jnp.bfloat16
    assert rounded.dtype == jnp.float32
    error = float(jnp.abs(exact - rounded).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 0.03


def test_tied_unembedding_is_the_transposed_embedding() -> None:
    config = model_config(n_layers=1, tied_unembedding=True)
    params = random_params(config)
    np.testing.assert_array_equal(unembedding_DV(params), params["W_E"].T)
    untied = params | {"W_U": params["W_E"].T}
    tokens = random_tokens(config, B, T)
    expected = forward(untied, tokens, dataclasses.replace(config, tied_unembedding=False))
    np.testing.assert_allclose(forward(params, tokens, config), expected, atol=1e-6)


def test_gradients_of_one_token_add_up_in_float32() -> None:
    """In bfloat16 a sum of ones stays at 256."""
    config = ModelConfig(n_layers=0, norm="none", d_model=4, n_ctx=600, vocab_size=5, compute_dtype="bfloat16")
    tokens = jnp.full((1, 600), 3)

    def total(params: Params) -> jax.Array:
        return jnp.sum(final_resid(params, tokens, config).astype(jnp.float32))

    grads = jax.grad(total)(random_params(config))
    np.testing.assert_array_equal(grads["W_E"], np.outer([0, 0, 0, 600, 0], np.ones(4)))
