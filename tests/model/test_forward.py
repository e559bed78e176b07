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
from icl_jax.model.params import Params, param_shapes
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.random_params import random_params, random_tokens

B, T, N_CTX, H, E, M, V = 2, 11, 13, 5, 4, 17, 29
D = H * E
ARCHITECTURES = OPTIONS | FAMILIES


def _norm(x: np.ndarray, weight: np.ndarray | None, kind: str, eps: float = 1e-5) -> np.ndarray:
    if weight is None:
        return x
    if kind == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _frequencies(config: ModelConfig, layer: int) -> list[float]:
    """Of each pair of a head, as the code of `transformers` has them, a pair at a time."""
    n = config.rotary_dim or config.head_width
    is_windowed = bool(config.window) and (not config.window_layers or layer in config.window_layers)
    base = config.window_rotary_base if is_windowed and config.window_rotary_base else config.rotary_base
    found = []
    for i in range(n // 2):
        plain = 1 / base ** (2 * i / n)
        scaling = "none" if base != config.rotary_base else config.rotary_scaling
        wavelength, ctx = 2 * math.pi / plain, config.rotary_original_ctx
        if scaling == "linear":
            plain /= config.rotary_factor
        elif scaling == "llama3":
            if wavelength > ctx / config.rotary_low_turns:
                plain /= config.rotary_factor
            elif wavelength > ctx / config.rotary_high_turns:
                smooth = (ctx / wavelength - config.rotary_low_turns) / (
                    config.rotary_high_turns - config.rotary_low_turns
                )
                plain = (1 - smooth) * plain / config.rotary_factor + smooth * plain
        elif scaling == "yarn":

            def dim(turns: float) -> float:
                return n * math.log(ctx / (turns * 2 * math.pi)) / (2 * math.log(base))  # noqa: B023

            low, high = (
                max(math.floor(dim(config.rotary_high_turns)), 0),
                min(math.ceil(dim(config.rotary_low_turns)), n - 1),
            )
            ramp = min(max((i - low) / (high - low), 0), 1)
            plain = plain / config.rotary_factor * ramp + plain * (1 - ramp)
        found.append(plain)
    return found


def _rotated(x: np.ndarray, position: int, frequencies: list[float]) -> np.ndarray:
    half = len(frequencies)
    out = x.copy()
    for i, frequency in enumerate(frequencies):
        angle = position * frequency
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


def _activated(x: np.ndarray, config: ModelConfig) -> np.ndarray:
    if config.activation == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if config.activation == "gelu":
        return x * np.vectorize(lambda y: 0.5 * (1 + math.erf(y / math.sqrt(2))))(x)
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    if config.activation.startswith("relu"):
        return np.maximum(x, 0) ** (2 if config.activation == "relu2" else 1)
    x = x * np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return _norm(x, np.ones(x.shape[-1]), "layernorm", config.norm_eps) if config.activation == "solu_ln" else x


def _capped(x: np.ndarray, cap: float) -> np.ndarray:
    return cap * np.tanh(x / cap) if cap else x


def _slope(head: int, n_heads: int) -> float:
    """ALiBi's, of 2, 3, 4 or 5 heads."""
    of_4 = [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    return {2: [1 / 16, 1 / 256], 3: [1 / 16, 1 / 256, 1 / 4], 4: of_4, 5: [*of_4, 1 / 2]}[n_heads][head]


def numpy_logits(params: Params, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """One row at a time, one head at a time, one query at a time, float64."""
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}
    pos = _positions(w, config)[: tokens.shape[1]] if config.positions in ("shortformer", "standard") else None

    def norm(x: np.ndarray, name: str, n: int | None = None) -> np.ndarray:
        weight = w.get(name)
        return _norm(x, weight if weight is None or n is None else weight[n], config.norm, config.norm_eps)

    def bias(name: str, *index: int) -> Any:
        return w[name][index] if name in w else 0

    out = []
    for row in tokens:
        resid = w["W_E"][row]
        if config.smear_gate:
            read = (
                resid if config.norm == "none" else _norm(resid, np.ones(config.d_model), config.norm, config.norm_eps)
            )
            gate = w["smear_lambda"] / (1 + np.exp(-read @ w["smear_gate_w"]))
            resid = np.stack([resid[0]] + [resid[t] + gate[t] * resid[t - 1] for t in range(1, len(row))])
        if config.positions == "standard":
            resid = resid + pos
        for n in range(config.n_layers):
            pre = resid
            x = norm(resid, "ln1_w", n)
            x_qk = x + pos if config.positions == "shortformer" else x
            n_shared = config.n_heads // config.key_heads
            qs = np.stack([x_qk @ w["W_Q"][n, h] + bias("b_Q", n, h) for h in range(config.n_heads)], 1)
            ks = np.stack([x_qk @ w["W_K"][n, g] + bias("b_K", n, g) for g in range(config.key_heads)], 1)
            if config.qk_norm == "head":
                qs, ks = norm(qs, "q_norm_w", n), norm(ks, "k_norm_w", n)
            elif config.qk_norm == "all":
                qs, ks = (
                    _norm(y.reshape(len(row), -1), w[name][n].reshape(-1), config.norm, config.norm_eps).reshape(
                        y.shape
                    )
                    for y, name in ((qs, "q_norm_w"), (ks, "k_norm_w"))
                )
            attn_out = np.zeros_like(resid) + bias("b_O", n)
            for h in range(config.n_heads):
                q, k = qs[:, h], ks[:, h // n_shared]
                v = x @ w["W_V"][n, h // n_shared] + bias("b_V", n, h // n_shared)
                if config.positions == "rotary" and n not in config.no_rotary_layers:
                    frequencies = _frequencies(config, n)
                    q, k = (np.stack([_rotated(y[t], t, frequencies) for t in range(len(row))]) for y in (q, k))
                if config.key_offset:
                    kept = config.head_width - config.key_offset
                    k = np.stack([k[0]] + [np.append(k[j, :kept], k[j - 1, kept:]) for j in range(1, len(row))])
                if config.smeared_keys:
                    own = 1 / (1 + math.exp(-w["smear_alpha"][n, h]))
                    k = np.stack([k[0]] + [own * k[j] + (1 - own) * k[j - 1] for j in range(1, len(row))])
                for t in range(len(row)):
                    is_windowed = config.window and (not config.window_layers or n in config.window_layers)
                    first = max(0, t + 1 - config.window) if is_windowed else 0
                    score = _capped(k[first : t + 1] @ q[t] / math.sqrt(config.head_width), config.attn_soft_cap)
                    if config.positions == "alibi":
                        score = score - _slope(h, config.n_heads) * np.arange(t - first, -1, -1)
                    weight = np.exp(score)
                    attn_out[t] += (weight / weight.sum()) @ v[first : t + 1] @ w["W_O"][n, h]
            resid = resid + norm(attn_out, "ln1_post_w", n)
            if config.d_mlp:
                if config.parallel_residual == "none":
                    x = norm(resid, "ln2_w", n)
                else:
                    x = norm(pre, "ln2_w" if config.parallel_residual == "two_norms" else "ln1_w", n)
                hidden = x @ w["W_in"][n] + bias("b_in", n)
                if config.gated_mlp:
                    hidden = _activated(x @ w["W_gate"][n] + bias("b_gate", n), config) * hidden
                else:
                    hidden = _activated(hidden, config)
                resid = resid + norm(hidden @ w["W_out"][n] + bias("b_out", n), "ln2_post_w", n)
        x = norm(resid, "ln_final_w")
        logits = x @ (w["W_E"].T if config.tied_unembedding else w["W_U"]) + w.get("b_U", 0)
        out.append(_capped(logits, config.logit_soft_cap))
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


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_option_gives_the_independent_logits(name: str) -> None:
    for attention in ("auto", "reference"):
        config = model_config(n_layers=2, attention=attention, **ARCHITECTURES[name])
        params, tokens = random_params(config), random_tokens(config, B, T)
        expected = numpy_logits(params, np.asarray(tokens), config)
        np.testing.assert_allclose(forward(params, tokens, config), expected, rtol=1e-6, atol=2e-5, err_msg=attention)
    # What an option does not change is not there.
    plain = model_config(n_layers=2, n_heads=config.n_heads, d_head=config.d_head, d_mlp=config.d_mlp)
    assert params.keys() != param_shapes(plain).keys() or not np.allclose(
        expected, numpy_logits(random_params(plain), np.asarray(tokens), plain), rtol=0, atol=3e-5
    )


@pytest.mark.parametrize("attention", ["blocked", "cudnn", "splash", "auto"])
def test_every_attention_gives_the_same_logits(attention: Any) -> None:
    config = model_config(n_layers=2, d_mlp=M, smeared_keys=True, attention=attention)
    params, tokens = random_params(config), random_tokens(config, B, T)
    np.testing.assert_allclose(forward(params, tokens, config), numpy_logits(params, tokens, config), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "attention"), [("shortformer", "blocked"), ("rotary", "reference"), ("standard", "cudnn")]
)
def test_later_tokens_never_change_earlier_logits(positions: Any, attention: Any) -> None:
    config = model_config(
        n_layers=2, d_mlp=M, smeared_keys=True, key_offset=2, smear_gate=True, positions=positions, attention=attention
    )
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
