"""Known answers: models written by hand, and uniform attention (values of docs/measures.md)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_jax.config import ModelConfig
from icl_jax.maths.head_scores import prefix_matching, previous_token, repeated_tokens
from icl_jax.maths.icl_score import icl_score
from icl_jax.model.forward import forward, run_with_cache
from icl_jax.model.params import Params, init_params
from tests.hand_built import GAMMA, induction_model, repeated_rows, smeared_induction_model

R, N_REPEATS = 25, 4
T = 1 + R * N_REPEATS
LN_V = math.log(64)
LOSS_ON_REPEATS = math.log1p(63 * math.exp(-GAMMA))


def _patterns(params: Params, config: ModelConfig, tokens: jax.Array) -> list[jax.Array]:
    _, cache = jax.jit(lambda params: run_with_cache(params, tokens, config, ("pattern",)))(params)
    return [cache["pattern", layer] for layer in range(config.n_layers)]


def _loss_T(params: Params, config: ModelConfig, tokens: jax.Array) -> np.ndarray:
    log_probs_BTV = jax.jit(lambda params: jax.nn.log_softmax(forward(params, tokens[:, :-1], config)))(params)
    return -np.asarray(jnp.take_along_axis(log_probs_BTV, tokens[:, 1:, None], axis=-1)[..., 0]).mean(axis=0)


@pytest.fixture(scope="module")
def rows() -> jax.Array:
    return jnp.asarray(repeated_rows())


def test_heads_of_the_two_layer_model_score_what_they_are(rows: jax.Array) -> None:
    params, config = induction_model()
    first, second = _patterns(params, config, rows)
    np.testing.assert_allclose(prefix_matching(second, rows), [1.0], atol=1e-3)
    np.testing.assert_allclose(prefix_matching(first, rows), [0.0], atol=1e-6)
    np.testing.assert_allclose(previous_token(first), [1.0], atol=1e-6)
    # It rests on BOS, which is the previous token of position 1 alone.
    np.testing.assert_allclose(previous_token(second), [1 / (T - 1)], atol=1e-4)


def test_the_two_layer_model_knows_nothing_before_and_everything_after_the_first_copy(rows: jax.Array) -> None:
    loss_T = _loss_T(*induction_model(), rows)
    # Position R, the last token of the first copy, is the first to be followed by a known one; nothing points there.
    np.testing.assert_allclose(loss_T[: R + 1], LN_V, atol=2e-4)
    np.testing.assert_allclose(loss_T[R + 1 :], LOSS_ON_REPEATS, atol=2e-5)


def test_icl_score_of_the_two_layer_model_is_minus_what_it_learns_in_context(rows: jax.Array) -> None:
    loss_T = _loss_T(*induction_model(), rows)
    assert icl_score(loss_T) == pytest.approx(LOSS_ON_REPEATS - LN_V, abs=2e-4)
    assert icl_score(loss_T) == pytest.approx(-4.1585, abs=2e-4)


@pytest.mark.parametrize(
    ("alpha", "matching", "first_copy_loss"),
    [(20.0, 0.0, None), (0.0, 0.307, None), (-1.0, 0.998, 4.47), (-3.0, 1.0, None), (-20.0, 1.0, 6.065)],
)
def test_smearing_makes_one_layer_enough(
    rows: jax.Array, alpha: float, matching: float, first_copy_loss: float | None
) -> None:
    params, config = smeared_induction_model(alpha)
    (pattern,) = _patterns(params, config, rows)
    np.testing.assert_allclose(prefix_matching(pattern, rows), [matching], atol=5e-4)
    if first_copy_loss is not None:
        # The rest on BOS leaks to position 1, whose key holds BOS's.
        assert _loss_T(params, config, rows)[:R].mean() == pytest.approx(first_copy_loss, abs=5e-3)


def _uniform(n_ctx: int) -> jax.Array:
    return jnp.asarray(np.tril(np.ones((n_ctx, n_ctx))) / np.arange(1, n_ctx + 1)[:, None], jnp.float32)


@pytest.mark.parametrize(("repeat_len", "n_repeats", "expected"), [(25, 4, 0.0307), (50, 2, 0.0136), (100, 2, 0.0069)])
def test_prefix_matching_of_uniform_attention(repeat_len: int, n_repeats: int, expected: float) -> None:
    n_ctx = 1 + repeat_len * n_repeats
    tokens = jnp.asarray(
        repeated_rows(n_ctx, vocab_size=128, n_sequences=2, repeat_len=repeat_len, n_repeats=n_repeats)
    )
    pattern = jnp.broadcast_to(_uniform(n_ctx)[None, None], (2, 3, n_ctx, n_ctx))
    np.testing.assert_allclose(prefix_matching(pattern, tokens), [expected] * 3, atol=5e-5)


@pytest.mark.parametrize(("n_ctx", "expected"), [(101, 0.042), (128, 0.035), (512, 0.0114)])
def test_previous_token_score_of_uniform_attention(n_ctx: int, expected: float) -> None:
    scores = previous_token(_uniform(n_ctx)[None, None])
    np.testing.assert_allclose(scores, [np.mean(1 / np.arange(2, n_ctx + 1))], rtol=1e-5)
    np.testing.assert_allclose(scores, [expected], atol=5e-4)


@pytest.mark.parametrize("smeared_keys", [False, True])
def test_an_untrained_model_scores_as_uniform_attention(rows: jax.Array, smeared_keys: bool) -> None:
    config = ModelConfig(n_layers=2, d_model=48, n_heads=3, n_ctx=T, smeared_keys=smeared_keys)
    for pattern in _patterns(init_params(config, seed=0), config, rows):
        np.testing.assert_allclose(prefix_matching(pattern, rows), [0.0307] * 3, atol=1e-3)
        np.testing.assert_allclose(previous_token(pattern), [0.042] * 3, atol=1e-3)


@given(st.data())
@settings(max_examples=40)
def test_prefix_matching_equals_its_definition_in_loops(data: st.DataObject) -> None:
    """On any tokens, repeats next to each other and BOS in the middle among them."""
    n_rows, n_heads, n_ctx = 2, 3, 11
    ids = st.lists(st.integers(0, 4), min_size=n_ctx, max_size=n_ctx)
    tokens = np.array([data.draw(ids) for _ in range(n_rows)])
    logits = np.random.default_rng(data.draw(st.integers(0, 99))).normal(0, 2, (n_rows, n_heads, n_ctx, n_ctx))
    pattern = np.exp(logits) * np.tril(np.ones((n_ctx, n_ctx)))
    pattern /= pattern.sum(-1, keepdims=True)
    found: list[list[float]] = [[] for _ in range(n_heads)]
    for b in range(n_rows):
        for q in range(n_ctx):
            targets = [k + 1 for k in range(q) if tokens[b, k] == tokens[b, q]]
            for h in range(n_heads) if targets else ():
                found[h].append(sum(pattern[b, h, q, target] for target in targets))
    expected = [np.mean(values) for values in found]
    scores = prefix_matching(jnp.asarray(pattern, jnp.float32), jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_prefix_matching_is_nan_where_no_token_repeats() -> None:
    assert np.isnan(prefix_matching(_uniform(7)[None, None], jnp.arange(7)[None])).all()


@given(
    n_ctx=st.integers(2, 70), n_candidates=st.integers(1, 40), repeat_len=st.integers(2, 30),
    n_repeats=st.integers(2, 5), seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60)
def test_repeated_tokens_fit_and_repeat(
    n_ctx: int, n_candidates: int, repeat_len: int, n_repeats: int, seed: int
) -> None:
    candidates = 7 + 3 * np.arange(n_candidates)

    def make() -> np.ndarray:
        return repeated_tokens(
            candidates, 2, n_ctx, n_sequences=4, repeat_len=repeat_len, n_repeats=n_repeats, seed=seed
        )

    tokens = make()
    assert tokens.dtype == np.int32
    assert tokens.shape == (4, 1 + n_repeats * min(repeat_len, (n_ctx - 1) // n_repeats, n_candidates))
    assert (tokens[:, 0] == 2).all()
    for row in tokens:
        copies = row[1:].reshape(n_repeats, -1)
        assert (copies == copies[0]).all()
        assert len(set(copies[0])) == copies.shape[1]
        assert set(copies[0]) <= set(candidates)
    np.testing.assert_array_equal(tokens, make())


def test_repeated_tokens_differ_between_rows_and_seeds() -> None:
    kwargs = {"n_sequences": 10, "repeat_len": 25, "n_repeats": 4}
    a, b = (repeated_tokens(np.arange(1, 64), 0, T, seed=seed, **kwargs) for seed in (0, 1))
    assert len({row.tobytes() for row in np.concatenate([a, b])}) == 20
