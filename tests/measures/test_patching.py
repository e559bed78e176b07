"""Patching against a naive forward pass in NumPy, and on hand-built models whose answer is known."""

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.analysis import (
    TokenPairs,
    activation_patching,
    attribution_patching,
    labelled_pairs,
    load_pairs,
    path_attribution,
    path_patching,
    path_to_logits,
    repeated_pairs,
)
from icl_jax.config import ModelConfig, UserError
from icl_jax.measures import passes
from icl_jax.measures.activation_patching import AXES
from icl_jax.model.forward import forward, run_with_cache
from icl_jax.model.loss import losses
from icl_jax.model.params import Params
from tests.hand_built import BOS, GAMMA, induction_model
from tests.measures.numpy_model import NumpyModel
from tests.model.architectures import FAMILIES, OPTIONS
from tests.model.random_params import random_params

CONFIG = ModelConfig(
    n_layers=3, d_model=10, n_heads=2, n_ctx=7, vocab_size=13, position_embedding="learned", d_mlp=11,
    biases=("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U"),
)  # fmt: skip
N_ROWS, N_CTX = 3, 5


@pytest.fixture(scope="module")
def pairs() -> TokenPairs:
    rng = np.random.default_rng(2)
    clean, corrupted = rng.integers(1, CONFIG.vocab_size, (2, N_ROWS, N_CTX + 1))
    asked = np.zeros((N_ROWS, N_CTX), bool)
    asked[0, [1, 4]] = asked[1, 3] = asked[2, 2:] = True
    return TokenPairs(clean, corrupted, asked, (clean[:, 1:] + 1) % CONFIG.vocab_size)


@pytest.fixture(scope="module")
def model() -> NumpyModel:
    return NumpyModel(_params(), CONFIG)


def _params() -> Params:
    """Heads and MLPs that matter."""
    params = random_params(CONFIG)
    return params | {name: 3 * params[name] for name in ("W_Q", "W_K", "W_O", "W_out")}


def _place(tap: str, position: int, head: int) -> tuple[Any, ...]:
    head_axis, position_axis = AXES[tap]
    index: list[Any] = [slice(None)] * (position_axis + 1)
    index[position_axis] = position
    if head_axis is not None:
        index = [*index, *[slice(None)] * (head_axis - len(index) + 1)]
        index[head_axis] = head
    return tuple(index)


def _put(
    name: str, layer: int, value: np.ndarray, *, at: tuple[str, int], here: tuple[Any, ...], new: np.ndarray
) -> np.ndarray:
    if (name, layer) == at:
        value = value.copy()
        value[here] = new[here]
    return value


def _naive_activation(model: NumpyModel, pairs: TokenPairs, tap: str, metric: str, into: str) -> np.ndarray:
    """[layer, position, head, row], one forward pass each."""
    base, other = pairs.clean[:, :-1], pairs.corrupted[:, :-1]
    base, other = (base, other) if into == "clean" else (other, base)
    new = model.cache(other)
    n_heads = 1 if AXES[tap][0] is None else CONFIG.n_heads
    found = np.zeros((CONFIG.n_layers, N_CTX, n_heads, N_ROWS))
    for layer, position, head in np.ndindex(found.shape[:3]):
        put = partial(_put, at=(tap, layer), here=_place(tap, position, head), new=new[tap, layer])
        found[layer, position, head] = model.metric(pairs, metric, base, put)
    return found


@pytest.mark.parametrize("tap", ["mlp_out", "attn_scores", "result"])
def test_activation_patching_is_that_of_another_implementation(
    tap: str, model: NumpyModel, pairs: TokenPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every place; two rows and a patch at a time, so that rows and patches are filled up."""
    n = list(AXES).index(tap)
    metric, into = ("loss", "logit_difference", "probability")[n % 3], ("clean", "corrupted")[n % 2]
    by = ("position", "head") if AXES[tap][0] is not None else ("position",)
    monkeypatch.setattr(passes, "TOKENS_AT_A_TIME", 2 * N_CTX)
    found = activation_patching(_params(), pairs, CONFIG, tap, by=by, metric=metric, into=into)
    expected = _naive_activation(model, pairs, tap, metric, into)
    expected = expected if len(by) == 2 else expected[:, :, 0]
    assert found["patched"].dims == ("layer", *by, "row")
    np.testing.assert_allclose(found["patched"], expected, atol=5e-6)
    clean, corrupted = (model.metric(pairs, metric, rows[:, :-1]) for rows in (pairs.clean, pairs.corrupted))
    np.testing.assert_allclose(found["clean"], clean, atol=5e-6)
    np.testing.assert_allclose(found["corrupted"], corrupted, atol=5e-6)
    base, other = (clean, corrupted) if into == "clean" else (corrupted, clean)
    share = (expected - base).mean(-1) / (other - base).mean()
    np.testing.assert_allclose(found["share"], share, atol=2e-3)
    assert np.abs(expected - base).max() > 5e-4


Head = tuple[int, int]


def _naive_path(
    model: NumpyModel, pairs: TokenPairs, senders: list[Head], receivers: list[Head], letter: str,
    metric: str, source: str, frozen_mlps: bool, scale: float = 1.0,
) -> np.ndarray:  # fmt: skip
    """`scale`: of the change of the sender's output."""
    tokens = pairs.clean[:, :-1]
    clean, corrupted = model.cache(tokens), model.cache(pairs.corrupted[:, :-1])

    def direct(name: str, layer: int, value: np.ndarray) -> np.ndarray:
        if name == "mlp_out" and frozen_mlps:
            return clean[name, layer]
        if name != "z":
            return value
        value = clean[name, layer].copy()
        for head in (head for at, head in senders if at == layer):
            new = corrupted[name, layer][:, head] if source == "corrupted" else 0
            value[:, head] += scale * (new - value[:, head])
        return value

    if not receivers:
        return model.metric(pairs, metric, tokens, direct)
    seen: dict[tuple[str, int], np.ndarray] = {}

    def keep(name: str, layer: int, value: np.ndarray) -> np.ndarray:
        seen[name, layer] = value
        return direct(name, layer, value)

    model.logits(tokens, keep)

    def put(name: str, layer: int, value: np.ndarray) -> np.ndarray:
        for head in (head for at, head in receivers if (letter, at) == (name, layer)):
            value[:, head] = seen[name, layer][:, head]
        return value

    return model.metric(pairs, metric, tokens, put)


@pytest.mark.parametrize(("source", "mlps"), [("corrupted", "recomputed"), ("zero", "frozen")])
def test_path_patching_is_that_of_another_implementation(
    source: Any, mlps: Any, model: NumpyModel, pairs: TokenPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "TOKENS_AT_A_TIME", 2 * N_CTX)
    params = _params()
    options = {"metric": "logit_difference", "source": source, "mlps": mlps}
    found = path_patching(params, pairs, CONFIG, **options)
    assert found["patched"].dims == ("through", "sender", "receiver", "row")
    how = ("logit_difference", source, mlps == "frozen")
    heads = [(layer, head) for layer in range(3) for head in range(2)]
    biggest = 0.0
    for letter in "qkv":
        for sender in heads:
            for receiver in heads:
                at = {"through": letter, "sender": "{}.{}".format(*sender), "receiver": "{}.{}".format(*receiver)}
                patched = found["patched"].sel(at).values
                if receiver[0] <= sender[0]:
                    assert np.isnan(patched).all()
                    continue
                expected = _naive_path(model, pairs, [sender], [receiver], letter, *how)
                np.testing.assert_allclose(patched, expected, atol=5e-6, err_msg=str(at))
                biggest = max(biggest, float(np.abs(expected - found["clean"].values).max()))
    assert biggest > 0.05
    senders, receivers = [(0, 0), (0, 1), (1, 0)], [(1, 1), (2, 0), (2, 1)]
    sets = path_patching(params, pairs, CONFIG, senders, receivers, **options, together=True)
    for letter in "qkv":
        expected = _naive_path(model, pairs, senders, receivers, letter, *how)
        np.testing.assert_allclose(sets["patched"].sel(through=letter), expected, atol=5e-6, err_msg=letter)
    to_logits = path_to_logits(params, pairs, CONFIG, [(0, 1), (2, 0)], **options)
    for sender in ((0, 1), (2, 0)):
        expected = _naive_path(model, pairs, [sender], [], "", *how)
        np.testing.assert_allclose(to_logits["patched"].sel(sender="{}.{}".format(*sender)), expected, atol=5e-6)


@pytest.mark.parametrize("tap", ["k", "pattern"])
def test_attribution_is_the_derivative_by_finite_differences(tap: str, model: NumpyModel, pairs: TokenPairs) -> None:
    """In float64, along what the patch changes."""
    metric = ("loss", "logit_difference", "probability")[len(tap) % 3]
    found = attribution_patching(_params(), pairs, CONFIG, tap, metric=metric, into="corrupted")
    base, other = pairs.corrupted[:, :-1], pairs.clean[:, :-1]
    old, new = model.cache(base), model.cache(other)
    values = found.values if AXES[tap][0] is not None else found.values[:, :, None]
    for layer, position, head in np.ndindex(values.shape[:3]):
        at, here = (tap, layer), _place(tap, position, head)
        ends = []
        for step in (1e-5, -1e-5):
            put = partial(_put, at=at, here=here, new=old[at] + step * (new[at] - old[at]))
            ends.append(model.metric(pairs, metric, base, put))
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(values[layer, position, head], expected, atol=5e-6, err_msg=str((layer, position)))
    assert np.abs(values).max() > 5e-4


def test_attribution_of_paths_is_the_derivative_by_finite_differences(model: NumpyModel, pairs: TokenPairs) -> None:
    found = path_attribution(_params(), pairs, CONFIG)
    how = ("loss", "corrupted", False)
    n_paths = 0
    for letter, sender, receiver in itertools.product("qkv", ((0, 1), (1, 0)), ((1, 1), (2, 0))):
        at = {"through": letter, "sender": "{}.{}".format(*sender), "receiver": "{}.{}".format(*receiver)}
        if receiver[0] > sender[0]:
            ends = [_naive_path(model, pairs, [sender], [receiver], letter, *how, step) for step in (1e-5, -1e-5)]
            np.testing.assert_allclose(found.sel(at), (ends[0] - ends[1]) / 2e-5, atol=5e-6, err_msg=str(at))
            n_paths += 1
        else:
            assert np.isnan(found.sel(at)).all()
    assert n_paths == 9


LN_V = math.log(64)
ON_REPEATS = math.log1p(63 * math.exp(-GAMMA))


def test_silent_on_one_path_the_previous_token_head_is_missed_by_keys_alone() -> None:
    """Given what it says on other rows: docs/measures.md."""
    params, config = induction_model(n_ctx=51)
    pairs = repeated_pairs(np.arange(1, 64), BOS, 51)
    found = path_patching(params, pairs, config, [(0, 0)], [(1, 0)], source="zero")
    loss = found["patched"].squeeze().mean("row")
    np.testing.assert_allclose(found["clean"], ON_REPEATS, atol=5e-6)
    np.testing.assert_allclose(loss.sel(through="k"), LN_V, atol=2e-4)
    for letter in "qv":
        np.testing.assert_allclose(loss.sel(through=letter), ON_REPEATS, atol=5e-6)
    np.testing.assert_allclose(
        path_to_logits(params, pairs, config)["patched"].mean("row"), [ON_REPEATS, LN_V], atol=2e-4
    )


def test_what_the_previous_token_head_says_brings_nothing_back_by_itself() -> None:
    params, config = induction_model(n_ctx=51)
    pairs = repeated_pairs(np.arange(1, 64), BOS, 51)
    # Put into the corrupted run, what 0.0 says has 1.0 look up the other block, and say the wrong token.
    wrong = (math.log(63 + math.exp(GAMMA)) - LN_V) / (ON_REPEATS - LN_V)
    restored = activation_patching(params, pairs, config, into="corrupted")["share"]
    np.testing.assert_allclose(restored.squeeze(), [wrong, 1], atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        FAMILIES["Gemma 2"] | {"n_layers": 2, "d_model": 16},
        OPTIONS["parallel, two norms"]
        | {"n_kv_heads": 1, "smeared_keys": True, "biases": ("b_K", "b_O"), "n_layers": 3},
    ],
    ids=["layers of two kinds", "parallel, shared smeared keys"],
)
def test_paths_of_other_architectures_are_those_of_taps(fields: dict[str, Any]) -> None:
    """By the definition, with taps of the forward pass: layers of two kinds, norms, shared and mixed keys."""
    config = ModelConfig(**{"d_model": 12, "n_heads": 3, "n_ctx": 7, "vocab_size": 13, **fields})
    params = random_params(config)
    clean, corrupted = np.random.default_rng(2).integers(1, 13, (2, 2, 7)).astype(np.int32)
    asked = np.ones((2, 6), bool)
    pairs = TokenPairs(clean, corrupted, asked)
    sender, receiver = (0, 1), (config.n_layers - 1, 2)
    found = path_patching(params, pairs, config, [sender], [receiver])

    @jax.jit
    def naive(params: Params) -> jax.Array:
        tokens, others = (jnp.asarray(rows[:, :-1]) for rows in (clean, corrupted))
        kept, new = (run_with_cache(params, of, config, ("z",))[1] for of in (tokens, others))
        seen = {}

        def direct(name: str, layer: int, value: jax.Array) -> jax.Array:
            seen[name, layer] = value
            if name != "z":
                return value
            z = kept[name, layer]
            return z.at[:, sender[1]].set(new[name, layer][:, sender[1]]) if layer == sender[0] else z

        forward(params, tokens, config, tap=direct)
        return jnp.stack([_loss_with(params, letter, seen[letter, receiver[0]]) for letter in "qkv"])

    def _loss_with(params: Params, letter: str, new: jax.Array) -> jax.Array:
        def tap(name: str, layer: int, value: jax.Array) -> jax.Array:
            is_there = (name, layer) == (letter, receiver[0])
            return value.at[:, receiver[1]].set(new[:, receiver[1]]) if is_there else value

        return jnp.mean(losses(params, jnp.asarray(clean), config, tap=tap), axis=1)

    np.testing.assert_allclose(found["patched"][:, 0, 0], naive(params), atol=2e-5)
    assert np.abs(found["patched"] - found["clean"]).max() > 1e-3


def test_the_input_of_shared_keys_is_that_of_their_heads_together(pairs: TokenPairs) -> None:
    config = replace(CONFIG, n_heads=2, n_kv_heads=1, d_mlp=0, biases=())
    params = random_params(config)
    keys = activation_patching(params, pairs, config, "k", heads=[0, 1], by=())
    inputs = activation_patching(params, pairs, config, "k_input")
    assert inputs.sizes["head"] == 1
    np.testing.assert_allclose(inputs["patched"][:, 0], keys["patched"], atol=5e-6)
    with pytest.raises(UserError, match="heads has 1: must be from 0 to 0"):
        activation_patching(params, pairs, config, "v_input", heads=[1])


def test_pairs_of_a_corpus_lack_what_was_to_be_copied() -> None:
    rows = np.array([[0, 1, 2, 9, 1, 2, 5], [0, 3, 4, 9, 9, 3, 4], [0, 7, 8, 7, 8, 5, 5], [0, 1, 2, 3, 4, 5, 6]])
    labels = np.zeros(rows.shape, int)
    labels[0, 5] = labels[1, 6] = labels[2, 4] = labels[3, 6] = 2
    pairs = labelled_pairs(rows, labels, 2)
    np.testing.assert_array_equal(pairs.clean, rows[:3])  # the last says nothing again
    np.testing.assert_array_equal(np.argwhere(pairs.asked), [[0, 4], [1, 5], [2, 3]])
    followers = {1: 2, 3: 4, 7: 8}
    for clean, corrupted, asked, wrong in zip(pairs.clean, pairs.corrupted, pairs.asked, pairs.wrong, strict=True):
        np.testing.assert_array_equal(clean[3:], corrupted[3:])
        assert followers[corrupted[1]] == corrupted[2] == wrong[asked]
        assert corrupted[1] != clean[1]
    only = labelled_pairs(rows, labels, 2, replace="answer")
    np.testing.assert_array_equal(np.delete(only.corrupted, 2, axis=1), np.delete(only.clean, 2, axis=1))
    with pytest.raises(UserError, match="label = 1: no row has a token of it"):
        labelled_pairs(rows, labels, 1)


def test_pairs_are_read_from_a_file(tmp_path: Path, pairs: TokenPairs) -> None:
    np.savez(tmp_path / "pairs.npz", clean=pairs.clean, corrupted=pairs.corrupted, asked=pairs.asked)
    read = load_pairs(tmp_path / "pairs.npz")
    np.testing.assert_array_equal(read.corrupted, pairs.corrupted)
    assert read.wrong is None
    np.savez(tmp_path / "less.npz", clean=pairs.clean, corrupted=pairs.corrupted)
    np.savez(tmp_path / "short.npz", clean=pairs.clean, corrupted=pairs.corrupted[:, 1:], asked=pairs.asked)
    (tmp_path / "text.npz").write_text("no array")
    for name, what in (
        ("less", "has no array asked"), ("short", "corrupted has the shape"), ("text", "cannot be read"),
        ("missing", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=what) as error:
            load_pairs(tmp_path / f"{name}.npz")
        assert "\n" not in str(error.value)
        assert name in str(error.value)


ROWS, ASKED = np.ones((2, 4), int), np.ones((2, 3), bool)


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ((ROWS[0], ROWS[0], ASKED), "clean has the shape"),
        ((1.0 * ROWS, ROWS, ASKED), "clean has the shape"),
        ((ROWS, ROWS[:1], ASKED), r"corrupted has the shape \(1, 4\): must have that of clean, \(2, 4\)"),
        ((ROWS, ROWS, ROWS), "asked has the shape"),
        ((ROWS, ROWS, np.array([[True] * 3, [False] * 3])), "asked: row 1 asks for nothing"),
        ((ROWS, ROWS, ASKED, ROWS), "wrong has the shape"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(arrays: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        TokenPairs(*arrays)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda p, x, c: activation_patching(p, x, c, "attn"), "tap = 'attn': must be one of resid_pre"),
        (lambda p, x, c: activation_patching(p, x, c, "mlp_out"), "model.d_mlp = 0"),
        (lambda p, x, c: activation_patching(p, x, c, layers=[2]), "layers has 2: must be from 0 to 1"),
        (lambda p, x, c: activation_patching(p, x, c, heads=[]), r"heads = \[\]: must name one or more"),
        (lambda p, x, c: activation_patching(p, x, c, positions=[-1]), "positions has -1"),
        (lambda p, x, c: activation_patching(p, x, c, "resid_pre", by=["head"]), "'resid_pre': has no heads"),
        (lambda p, x, c: activation_patching(p, x, c, by=["layer"]), "by has 'layer'"),
        (lambda p, x, c: activation_patching(p, x, c, metric="accuracy"), "metric = 'accuracy'"),
        (lambda p, x, c: activation_patching(p, x, c, metric="logit_difference"), "wrong: of row 0 the same token"),
        (lambda p, x, c: activation_patching(p, x, c, into="both"), "into = 'both'"),
        (lambda p, x, c: attribution_patching(p, x, c, "mlp_out"), "model.d_mlp = 0"),
        (lambda p, x, c: path_patching(p, x, c, [(0, 3)]), r"senders has \(0, 3\): heads are \(0, 0\) to \(1, 1\)"),
        (lambda p, x, c: path_patching(p, x, c, []), r"senders = \[\]"),
        (lambda p, x, c: path_patching(p, x, c, None, []), r"receivers = \[\]"),
        (lambda p, x, c: path_patching(p, x, c, [(1, 0)], [(0, 1)]), "receivers: the last is in layer 0, the first"),
        (lambda p, x, c: path_patching(p, x, c, through="w"), "must be one or more of q, k, v"),
        (lambda p, x, c: path_patching(p, x, c, source="noise"), "source = 'noise'"),
        (lambda p, x, c: path_to_logits(p, x, c, mlps="none"), "mlps = 'none'"),
        (lambda p, x, c: path_attribution(p, x, c, [(9, 0)]), "senders has"),
        (lambda p, x, c: path_patching(p, x, replace(c, vocab_size=1 + 1)), "ids from"),
        (lambda p, x, c: path_patching(p, x, replace(c, n_ctx=2)), "model.n_ctx = 2"),
        (lambda p, x, c: path_patching(p, x, replace(c, n_layers=0)), "nothing to patch"),
        (lambda p, x, c: repeated_pairs(np.arange(3), 0, 9), "3 candidates"),
    ],
)
def test_what_cannot_be_patched_is_refused(call: Any, what: str) -> None:
    """In one line, before anything is computed."""
    rows = np.array([[1, 2, 3, 4]])
    pairs = TokenPairs(rows, rows, np.ones((1, 3), bool))
    with pytest.raises(UserError, match=what) as error:
        call({}, pairs, ModelConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=9))
    assert "\n" not in str(error.value)
