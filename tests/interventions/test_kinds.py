"""Every kind against a forward pass in NumPy, and what must have no gradient."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import Config, ModelConfig, ProbeConfig
from icl_jax.config.interventions import NAMES, Intervention, read
from icl_jax.interventions.tap import intervened, with_interventions
from icl_jax.maths.head_scores import prefix_matching, previous_token
from icl_jax.model import execution
from icl_jax.model.forward import final_resid, forward, run_with_cache
from icl_jax.model.loss import losses
from icl_jax.model.params import Params
from icl_jax.rundir import RunDir
from tests.hand_built import BOS, induction_model, repeated_rows
from tests.model.random_params import random_params, random_tokens

B, T, H, E, V, N = 3, 7, 2, 5, 11, 2
MODEL = ModelConfig(
    n_layers=N, d_model=H * E, n_heads=H, n_ctx=9, vocab_size=V, position_embedding="learned", attention="reference"
)
CONFIG = Config(model=MODEL)
OTHER = random_params(MODEL, seed=3)

Hook = Callable[[str, int, np.ndarray], np.ndarray]


def numpy_forward(params: Params, tokens: np.ndarray, hook: Hook) -> np.ndarray:
    """Logits in float64; the hook sees what a tap sees."""
    w = {name: np.asarray(value, np.float64) for name, value in params.items()}

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        if MODEL.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + MODEL.norm_eps) * weight

    n_ctx = tokens.shape[1]
    is_hidden = np.triu(np.ones((n_ctx, n_ctx), bool), 1)
    resid = w["W_E"][tokens]
    for n in range(N):
        resid = hook("resid_pre", n, resid)
        qkv = []
        for letter in "QKV":
            x = norm(hook(f"{letter.lower()}_input", n, np.stack([resid] * H, 2)), w["ln1_w"][n])
            if letter != "V":
                x = x + w["W_pos"][:n_ctx, None]
            qkv.append(hook(letter.lower(), n, np.einsum("bthd,hde->bhte", x, w[f"W_{letter}"][n])))
        scores = np.where(is_hidden, -np.inf, np.einsum("bhqe,bhke->bhqk", qkv[0], qkv[1]) / np.sqrt(E))
        scores = np.where(is_hidden, -np.inf, hook("attn_scores", n, np.where(is_hidden, 0, scores)))
        exp = np.exp(scores - scores.max(-1, keepdims=True))
        pattern = hook("pattern", n, exp / exp.sum(-1, keepdims=True))
        z = hook("z", n, pattern @ qkv[2])
        resid = hook("resid_mid", n, resid + hook("result", n, np.einsum("bhte,hed->bthd", z, w["W_O"][n])).sum(2))
        resid = hook("resid_post", n, resid)
    return norm(resid, w["ln_final_w"]) @ w["W_U"]


def on_head(at: str, head: int, change: Callable[[np.ndarray], np.ndarray], layer: int = 1) -> Hook:
    """A change of one head of an activation; of all of one that has no heads."""

    def hook(name: str, n: int, value: np.ndarray) -> np.ndarray:
        if (name, n) != (at, layer):
            return value
        value = value.copy()
        where = (slice(None),) * (2 if at in ("result", "q_input", "k_input", "v_input") else 1) + (head,)
        where = () if at.startswith("resid") else where
        value[where] = change(value[where])
        return value

    return hook


def pattern_by_hand(name: str, tokens: np.ndarray) -> np.ndarray:
    """[row, query, key], one entry at a time."""
    found = np.zeros((*tokens.shape, tokens.shape[1]))
    for b, row in enumerate(tokens):
        for q in range(len(row)):
            earlier = [k for k in range(q) if row[k] == row[q]]
            keys = {
                "previous": [max(q - 1, 0)], "induction": [k + 1 for k in earlier] or [0], "duplicate": earlier or [0],
                "uniform": list(range(q + 1)), "first": [0], "identity": [q],
            }[name]  # fmt: skip
            found[b, q, keys] = 1 / len(keys)
    return found


def _copied(tokens: np.ndarray, params: Params) -> np.ndarray:
    W_VD = np.asarray(params["W_U"], np.float64).T
    return 2.5 * (W_VD / np.linalg.norm(W_VD, axis=1, keepdims=True))[tokens]


PARAMS, TOKENS = random_params(MODEL), np.asarray(random_tokens(MODEL, B, T))
EMBEDDED = np.asarray(PARAMS["W_E"], np.float64)[TOKENS]
CASES: dict[str, tuple[dict[str, Any], Hook]] = {
    "zero": ({"at": "result", "what": "zero"}, on_head("result", 0, lambda x: 0 * x)),
    "mean": ({"at": "z", "what": "mean"}, on_head("z", 0, lambda x: np.broadcast_to(x.mean(0), x.shape))),
    "scale": ({"at": "v", "scale": -1.5}, on_head("v", 0, lambda x: -1.5 * x)),
    "freeze": ({"at": "q", "what": "freeze"}, on_head("q", 0, lambda x: x)),
    "temperature": ({"at": "attn_scores", "temperature": 3.0}, on_head("attn_scores", 0, lambda x: x / 3)),
    "scale of scores": ({"at": "attn_scores", "scale": 0.0}, on_head("attn_scores", 0, lambda x: 0 * x)),
    "embedding of keys": (
        {"at": "k_input", "embedding": "own"}, on_head("k_input", 0, lambda _x: EMBEDDED),
    ),
    "embedding before": (
        {"at": "result", "embedding": "previous"},
        on_head("result", 0, lambda _x: np.concatenate([EMBEDDED[:, :1], EMBEDDED[:, :-1]], axis=1)),
    ),
    "zero of values' input": ({"at": "v_input", "what": "zero"}, on_head("v_input", 0, lambda x: 0 * x)),
    "zero of the stream": (
        {"at": "resid_mid", "what": "zero", "heads": ()}, on_head("resid_mid", 0, lambda x: 0 * x, layer=1),
    ),
}  # fmt: skip
CASES |= {
    f"pattern {name}": (
        {"at": "pattern", "pattern": name},
        on_head("pattern", 0, lambda _x, name=name: pattern_by_hand(name, TOKENS)),  # type: ignore[misc]
    )
    for name in ("previous", "induction", "duplicate", "uniform", "first", "identity")
}


def ones(*tables: dict[str, Any]) -> tuple[Intervention, ...]:
    return read([{"layers": 1, **({} if "heads" in table else {"heads": 0}), **table} for table in tables])


@pytest.mark.parametrize("name", list(CASES))
def test_a_kind_is_what_numpy_says(name: str) -> None:
    table, hook = CASES[name]
    expected = numpy_forward(PARAMS, TOKENS, hook)
    found = with_interventions(forward, PARAMS, jnp.asarray(TOKENS), CONFIG, ones(table))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    plain = numpy_forward(PARAMS, TOKENS, lambda _name, _layer, x: x)
    assert (np.abs(expected - plain).max() > 0.01) == (name != "freeze")


def test_copying_follows_the_pattern_that_is_given() -> None:
    """Several in order: the second sees what the first has done."""
    pattern = pattern_by_hand("induction", TOKENS)

    def hook(name: str, layer: int, value: np.ndarray) -> np.ndarray:
        if layer == 1 and name == "pattern":
            value = value.copy()
            value[:, 0] = pattern
        if layer == 1 and name == "result":
            value = value.copy()
            value[:, :, 0] = pattern @ _copied(TOKENS, PARAMS)
        return value

    chosen = ones({"at": "pattern", "pattern": "induction"}, {"at": "result", "copy": 2.5})
    found = with_interventions(forward, PARAMS, jnp.asarray(TOKENS), CONFIG, chosen)
    np.testing.assert_allclose(found, numpy_forward(PARAMS, TOKENS, hook), atol=2e-5)


def test_noise_is_of_the_row_and_not_of_the_batch() -> None:
    chosen = ones({"at": "z", "noise": 0.5})
    on = intervened(chosen, CONFIG)

    def noise(rows: list[int]) -> np.ndarray:
        seen: dict[str, jax.Array] = {}
        inner = on.tap(PARAMS, jnp.asarray(TOKENS[rows]), jnp.asarray(rows))
        assert inner is not None

        def tap(name: str, layer: int, value: jax.Array) -> jax.Array:
            new = inner(name, layer, value)
            seen[name] = new - value
            return new

        final_resid(PARAMS, jnp.asarray(TOKENS[rows]), MODEL, tap=tap, seen=("z",))
        return np.asarray(seen["z"])

    whole = noise([0, 1, 2])
    np.testing.assert_allclose(noise([2]), whole[2:], atol=1e-6)
    assert (whole[:, 1] == 0).all()
    assert 0.35 < whole[:, 0].std() < 0.65


def test_another_run_gives_values_and_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head 1 of layer 0 in place of head 0 of layer 1."""
    run = type("Run", (), {"config": CONFIG, "one": lambda self: self, "load_params": lambda self, step: OTHER})()
    monkeypatch.setattr(RunDir, "open", lambda _path: run)
    seen: dict[str, np.ndarray] = {}
    numpy_forward(OTHER, TOKENS, lambda name, n, x: seen.setdefault(f"{name} {n}", x))
    mapped = {"from_run": "other", "step": 5, "from_layer": 0, "from_head": 1}
    found = with_interventions(forward, PARAMS, jnp.asarray(TOKENS), CONFIG, ones({"at": "pattern", **mapped}))
    expected = numpy_forward(PARAMS, TOKENS, on_head("pattern", 0, lambda _x: seen["pattern 0"][:, 1]))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    found = with_interventions(forward, PARAMS, jnp.asarray(TOKENS), CONFIG, ones({"at": "W_V", **mapped}))
    swapped = PARAMS | {"W_V": PARAMS["W_V"].at[1, 0].set(OTHER["W_V"][0, 1])}
    np.testing.assert_allclose(found, forward(swapped, jnp.asarray(TOKENS), MODEL), atol=1e-6)


def _grads(table: dict[str, Any], **of_execution: Any) -> Params:
    on = intervened(ones(table), CONFIG)
    how = replace(execution.resolve(MODEL), own_gradients=True, **of_execution)

    def loss(params: Params) -> jax.Array:
        tokens = jnp.asarray(TOKENS)
        changed = on.params(params)
        tap = on.tap(changed, tokens)
        x = final_resid(changed, tokens, MODEL, tap=tap, seen=on.seen, scan_tap=True, execution=how)
        return jnp.mean(jnp.square(x[..., 0]))

    return jax.jit(jax.grad(loss))(PARAMS)


def test_what_is_given_has_no_gradient() -> None:
    """Exactly none, and the other heads have some."""
    grads = _grads({"at": "pattern", "pattern": "previous"})
    for name in ("W_Q", "W_K"):
        assert not np.asarray(grads[name][1, 0]).any()
        assert np.asarray(grads[name][1, 1]).any()
        assert np.asarray(grads[name][0]).any()
    assert np.asarray(grads["W_V"][1, 0]).any()
    stopped = _grads({"at": "v", "what": "freeze"})
    assert not np.asarray(stopped["W_V"][1, 0]).any()
    assert np.asarray(stopped["W_V"][1, 1]).any()
    hidden = _grads({"at": "attn_scores", "temperature": 2.0})
    assert all(np.isfinite(value).all() for value in hidden.values())


@pytest.mark.parametrize("table", [{"at": "pattern", "pattern": "previous"}, {"at": "k_input", "embedding": "own"}])
def test_scanned_layers_have_the_same_gradients(table: dict[str, Any]) -> None:
    expected = _grads(table)
    for name, value in _grads(table, scan_layers=True, remat=True).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)


def test_only_layers_that_are_meant_leave_the_fast_forms() -> None:
    assert intervened(ones({"at": "pattern", "pattern": "first"}), CONFIG).seen == {1: {"pattern"}}
    assert intervened(read([{"at": "W_Q", "what": "freeze"}]), CONFIG).seen == {}


def test_perfect_patterns_of_a_model_made_by_hand() -> None:
    """Without its own previous-token head the induction head needs one to be given; then both score 1."""
    params, model = induction_model()
    config = Config(model=model, probes=ProbeConfig(n_probes=0))
    rows = jnp.asarray(repeated_rows())
    broken = params | {"W_Q": params["W_Q"].at[0].set(0.0)}
    given = read([{"at": "pattern", "layers": 0, "pattern": "previous"}])
    _, plain = run_with_cache(broken, rows, model, ("pattern",))
    assert float(prefix_matching(plain["pattern", 1], rows)[0]) < 0.4
    scores: dict[str, float] = {}

    def keeping(params: Params, tokens: jax.Array, config: ModelConfig, *, tap: Any, seen: Any) -> None:
        def keep(name: str, layer: int, value: jax.Array) -> jax.Array:
            value = tap(name, layer, value)
            score = previous_token(value) if layer == 0 else prefix_matching(value, tokens)
            scores[f"{name} {layer}"] = float(score[0])
            return value

        forward(params, tokens, config, tap=keep, seen=("pattern",))

    with_interventions(keeping, broken, rows, config, given)
    assert scores == {"pattern 0": pytest.approx(1, abs=1e-6), "pattern 1": pytest.approx(1, abs=1e-4)}
    # Keys of layer 1 that read the embedding match nothing: each rests on BOS, which says nothing.
    unfed = read([{"at": "k_input", "layers": 1, "embedding": "own"}])
    lost = with_interventions(losses, params, rows, config, unfed)
    np.testing.assert_allclose(lost, np.log(model.vocab_size), atol=1e-4)
    kept = with_interventions(losses, params, rows, config, read([{"at": "v_input", "layers": 1, "embedding": "own"}]))
    assert float(kept[:, 30:].mean()) < 0.01
    assert int(rows[0, 0]) == BOS


def test_every_kind_has_a_case() -> None:
    tested = {table.get("what", next((name for name in NAMES if name in table), "")) for table, _ in CASES.values()}
    assert tested | {"noise", "copy", "from_run"} == set(NAMES)
