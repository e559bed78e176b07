"""Paths add up to the model, whatever its norms and positions; hand-built models have one path that matters."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.maths import frozen_run
from icl_jax.measures import paths as path_expansion
from icl_jax.measures import term_importance
from icl_jax.measures.measurement import Measurement
from icl_jax.measures.paths import PATH_PAIRS, PATHS
from icl_jax.model.forward import forward
from icl_jax.model.params import Params
from tests.analysis.random_snapshots import check, context, stacked
from tests.hand_built import BETA, GAMMA, induction_model, repeated_rows
from tests.model.random_params import random_params, random_tokens

TERM_IMPORTANCE = term_importance.MEASUREMENT
# Compiled whole: op by op takes many times longer.
run_frozen, to_logits, expand_paths, expand_scores, next_token_logit, path_logits, importance = (
    jax.jit(fn, static_argnums=n_arrays)
    for fn, n_arrays in (
        (frozen_run.frozen_run, 2),
        (frozen_run.to_logits, 3),
        (path_expansion.expand_paths, 2),
        (path_expansion.expand_scores, 2),
        (path_expansion.next_token_logit, 4),
        (path_expansion.path_logits, 3),
        (term_importance.term_importance, 2),
    )
)

KINDS = [
    *itertools.product([1, 2], ["none", "rmsnorm", "layernorm"], ["shortformer"], [False]),
    (2, "layernorm", "rotary", False),
    (2, "layernorm", "standard", False),
    (2, "rmsnorm", "shortformer", True),
]


def _config(n_layers: int, norm: str, positions: str, smeared_keys: bool, **changes: object) -> ModelConfig:
    fields = {"d_model": 12, "n_heads": 3, "n_ctx": 11, "vocab_size": 19} | changes
    return ModelConfig(n_layers=n_layers, norm=norm, positions=positions, smeared_keys=smeared_keys, **fields)


@pytest.mark.parametrize(("n_layers", "norm", "positions", "smeared_keys"), KINDS)
def test_paths_and_score_terms_add_up_to_the_model(
    n_layers: int, norm: str, positions: str, smeared_keys: bool
) -> None:
    config = _config(n_layers, norm, positions, smeared_keys)
    params, rows = random_params(config), random_tokens(config, 2, 12)

    @jax.jit
    def measure(params: Params) -> tuple[jax.Array, jax.Array, list[jax.Array], term_importance.TermImportance]:
        run = frozen_run.frozen_run(params, rows[:, :-1], config)
        paths = path_expansion.expand_paths(params, run, config)
        residuals = [path_expansion.path_logits(params, run, paths, config) - run.logits]
        if n_layers == 2:
            residuals.append(path_expansion.expand_scores(params, run, config).residual)
        terms = term_importance.term_importance(params, rows, config)
        return forward(params, rows[:, :-1], config), run.logits, residuals, terms

    model_logits, logits, residuals, terms = measure(params)
    np.testing.assert_allclose(logits, model_logits, atol=1e-6)
    for residual in residuals:
        assert np.abs(residual).max() < 1e-5
    assert terms.order.shape == (n_layers + 1,)
    assert terms.order[-1] == pytest.approx(float(terms.full), abs=1e-5)


def test_terms_are_the_products_of_the_framework() -> None:
    """Without norms: A^h W_E W_OV W_U and A^h2 A^h1 W_E W_OV1 W_OV2 W_U, written out."""
    config = _config(2, "none", "shortformer", False)
    params, tokens = random_params(config), random_tokens(config, 1, 11)
    run = run_frozen(params, tokens, config)
    paths = expand_paths(params, run, config)
    W = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = W["W_E"][np.asarray(tokens[0])]
    A = [np.asarray(pattern[0], np.float64) for pattern in run.patterns]
    OV = W["W_V"] @ W["W_O"]
    assert paths.virtual is not None
    np.testing.assert_allclose(to_logits(params, run, paths.direct, config)[0], x @ W["W_U"], atol=1e-5)
    for layer, head in np.ndindex(2, 3):
        term = A[layer][head] @ x @ OV[layer, head] @ W["W_U"]
        np.testing.assert_allclose(to_logits(params, run, paths.heads, config)[layer, head, 0], term, atol=1e-5)
    for first, second in np.ndindex(3, 3):
        term = A[1][second] @ A[0][first] @ x @ OV[0, first] @ OV[1, second] @ W["W_U"]
        np.testing.assert_allclose(to_logits(params, run, paths.virtual, config)[first, second, 0], term, atol=1e-5)
    targets = random_tokens(config, 1, 11, seed=5)
    gain = next_token_logit(params, run, paths.virtual, targets, config)[2, 1, 0]
    logits = A[1][1] @ A[0][2] @ x @ OV[0, 2] @ OV[1, 1] @ W["W_U"]
    expected = logits[np.arange(11), np.asarray(targets[0])] - logits.mean(1)
    np.testing.assert_allclose(gain, expected, atol=1e-5)


def test_score_terms_are_spreads_over_visible_keys() -> None:
    config = _config(2, "none", "shortformer", False, position_embedding="learned")
    params, tokens = random_params(config), random_tokens(config, 1, 11)
    run = run_frozen(params, tokens, config)
    std = expand_scores(params, run, config).std
    assert std.shape == (3, 5, 5)
    W = {name: np.asarray(value, np.float64) for name, value in params.items()}
    x = W["W_E"][np.asarray(tokens[0])]
    through = np.asarray(run.patterns[0][0, 1], np.float64) @ x @ W["W_V"][0, 1] @ W["W_O"][0, 1]
    for query_source, q in ((0, x), (1, W["W_pos"]), (3, through)):
        scores = q @ W["W_Q"][1, 2] @ (through @ W["W_K"][1, 2]).T / 2
        seen = [scores[i, : i + 1] - scores[i, : i + 1].mean() for i in range(11)]
        assert std[2, query_source, 3] == pytest.approx(np.sqrt(np.mean(np.concatenate(seen) ** 2)), rel=1e-4)


def test_hand_built_induction_is_one_path_and_one_score_term() -> None:
    params, config = induction_model()
    rows = jnp.asarray(repeated_rows(n_sequences=3))
    run = run_frozen(params, rows[:, :-1], config)
    paths = expand_paths(params, run, config)
    gain = next_token_logit(params, run, paths.heads, rows[:, 1:], config)
    np.testing.assert_allclose(gain[0], 0, atol=1e-5)
    # Positions R + 1 and later know their next token; it gains GAMMA, less its share of the mean.
    np.testing.assert_allclose(gain[1, :, :, 26:], GAMMA * 63 / 64, atol=1e-3)
    np.testing.assert_allclose(next_token_logit(params, run, paths.direct, rows[:, 1:], config), 0, atol=1e-5)
    assert paths.virtual is not None
    np.testing.assert_allclose(next_token_logit(params, run, paths.virtual, rows[:, 1:], config), 0, atol=1e-5)
    std = np.asarray(expand_scores(params, run, config).std)[0]
    assert np.unravel_index(std.argmax(), std.shape) == (0, 2)
    assert std[0, 2] > 2
    assert std[0, 0] < BETA / 2 * 0.2  # the rest on BOS
    np.testing.assert_allclose(std[1:], 0, atol=1e-6)


def test_hand_built_term_importance() -> None:
    params, config = induction_model()
    rows = jnp.asarray(repeated_rows(n_sequences=3))
    terms = importance(params, rows, config)
    late = math.log1p(63 * math.exp(-GAMMA))
    full = (26 * math.log(64) + 74 * late) / 100
    np.testing.assert_allclose(terms.order, [math.log(64), full, full], atol=2e-4)
    np.testing.assert_allclose(terms.added, [0, math.log(64) - full], atol=2e-4)
    np.testing.assert_allclose(terms.removed, [0, math.log(64) - full], atol=2e-4)


def test_orders_of_three_layers_against_masks_on_the_number_of_heads() -> None:
    """Order by order in float64: the coefficient of z^n when every head's output is multiplied by z."""
    config = _config(3, "none", "shortformer", False)
    params, rows = random_params(config), random_tokens(config, 1, 12)
    run = run_frozen(params, rows[:, :-1], config)
    W = {name: np.asarray(value, np.float64) for name, value in params.items()}
    coefficients = [np.asarray(run.embed[0], np.float64)] + [np.zeros((11, 12))] * 3
    for layer in range(3):
        written = [
            sum(
                np.asarray(run.patterns[layer][0, h], np.float64) @ c @ W["W_V"][layer, h] @ W["W_O"][layer, h]
                for h in range(3)
            )
            for c in coefficients
        ]
        coefficients = [c + (written[n - 1] if n else 0) for n, c in enumerate(coefficients)]
    losses = []
    for order in range(4):
        logits = sum(coefficients[: order + 1]) @ W["W_U"]
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses.append(-log_probs[np.arange(11), np.asarray(rows[0, 1:])].mean())
    np.testing.assert_allclose(importance(params, rows, config).order, losses, atol=1e-5)


@pytest.mark.parametrize(("n_layers", "norm"), [(1, "none"), (2, "layernorm")])
def test_measured_over_snapshots(n_layers: int, norm: str) -> None:
    config = _config(n_layers, norm, "shortformer", False)
    params = stacked(config)
    paths = check(PATHS, config, params)
    assert (paths["path_residual"] < 1e-5).all()
    terms = check(TERM_IMPORTANCE, config, params)
    assert (terms["term_residual"] < 1e-5).all()
    if n_layers == 2:
        pairs = check(PATH_PAIRS, config, params)
        assert (pairs["qk_term_residual"] < 1e-5).all()
        assert pairs["path_virtual"].shape == (2, 3, 3)
        assert pairs["qk_term_std"].shape == (2, 3, 5, 5)


def test_where_paths_are_not_defined_it_is_said_why() -> None:
    def why(measurement: Measurement, **fields: int) -> str:
        reason = measurement.why_not(context(ModelConfig(**fields)))
        assert reason is not None
        return reason

    assert "no layers" in why(PATHS, n_layers=0)
    assert "model.d_mlp = 64" in why(PATHS, d_mlp=64)
    assert "model.n_layers = 3" in why(PATHS, n_layers=3)
    assert "model.n_layers = 1" in why(PATH_PAIRS, n_layers=1)
    assert "model.d_mlp = 64" in why(TERM_IMPORTANCE, d_mlp=64)
    assert TERM_IMPORTANCE.why_not(context(ModelConfig(n_layers=3))) is None
    config = _config(3, "none", "shortformer", False)
    params = random_params(config)
    with pytest.raises(ValueError, match="n_layers=3"):
        expand_paths(params, run_frozen(params, random_tokens(config, 1, 5), config), config)
