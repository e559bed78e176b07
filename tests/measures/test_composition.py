"""Composition scores: the definition by dense products, hand-built heads, random heads."""

import numpy as np
import pytest

from icl_jax.config import ModelConfig
from icl_jax.measures.circuits import fold_norms
from icl_jax.measures.composition import MEASUREMENT, composition_scores, is_defined, random_baseline
from tests.analysis.random_snapshots import check, context, stacked
from tests.hand_built import induction_model

WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")


def test_scores_are_those_of_the_dense_matrices() -> None:
    rng = np.random.default_rng(0)
    n_snapshots, n, h, d, e = 2, 3, 2, 11, 5
    W_Q, W_K, W_V, W_O = (rng.normal(size=(n_snapshots, n, h, d, e)) for _ in WEIGHTS)
    W_O = W_O.mT
    scores = composition_scores(W_Q, W_K, W_V, W_O)
    QK, OV = W_Q @ W_K.mT, W_V @ W_O
    norm = np.linalg.norm
    for s, src, i, dst, j in np.ndindex(n_snapshots, n, h, n, h):
        found = [values[s, src, i, dst, j] for values in scores]
        if src >= dst:
            assert np.isnan(found).all()
            continue
        ov1, qk2, ov2 = OV[s, src, i], QK[s, dst, j], OV[s, dst, j]
        for value, reads in zip(found, (qk2, qk2.T, ov2), strict=True):
            assert value == pytest.approx(norm(ov1 @ reads) / (norm(ov1) * norm(reads)), rel=1e-9)
    np.testing.assert_array_equal(is_defined(3), [[False, True, True], [False, False, True], [False, False, False]])


def test_the_hand_built_pair_composes_through_keys_alone() -> None:
    params, _ = induction_model()
    scores = composition_scores(*(np.asarray(params[name]) for name in WEIGHTS))
    assert scores.k[0, 0, 1, 0] == pytest.approx(1 / np.sqrt(80), rel=1e-6)
    assert scores.k[0, 0, 1, 0] == pytest.approx(0.1118, abs=5e-5)
    assert scores.q[0, 0, 1, 0] == scores.v[0, 0, 1, 0] == 0


def test_a_head_without_weights_scores_zero_and_an_aligned_pair_one() -> None:
    rng = np.random.default_rng(1)
    a, b, c, o = (rng.normal(size=(2, 1, 6, 1)) for _ in range(4))
    b[1] = o[0]  # the second's keys read just what the first writes
    assert composition_scores(a, b, c, o.mT).k[0, 0, 1, 0] == pytest.approx(1, abs=1e-12)
    scores = composition_scores(a, b, np.zeros_like(c), o.mT)
    assert scores.q[0, 0, 1, 0] == scores.k[0, 0, 1, 0] == scores.v[0, 0, 1, 0] == 0


@pytest.mark.parametrize(
    ("d_model", "d_head", "mean", "sd"),
    [(64, 16, 0.1248, 0.0073), (128, 32, 0.0886, 0.0024), (128, 16, 0.0886, 0.0044), (192, 64, 0.0722, 0.0011)],
)
def test_random_heads_score_one_over_root_d_model(d_model: int, d_head: int, mean: float, sd: float) -> None:
    baseline = random_baseline(d_model, d_head)
    assert baseline.mean == pytest.approx(mean, abs=4 * baseline.sem)
    assert baseline.mean == pytest.approx(d_model**-0.5, rel=0.05)
    assert baseline.sd == pytest.approx(sd, rel=0.25)
    assert baseline.sem == pytest.approx(baseline.sd / np.sqrt(200))


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "none"])
def test_measured_with_the_baseline_subtracted(norm: str) -> None:
    model = ModelConfig(n_layers=3, d_model=32, n_heads=2, n_ctx=9, vocab_size=30, norm=norm)
    params = stacked(model)
    found = check(MEASUREMENT, model, params)
    weights = fold_norms(params, model)
    raw = composition_scores(*(weights[name] for name in WEIGHTS))
    baseline = random_baseline(32, 16)
    defined = np.broadcast_to(is_defined(3)[None, :, None, :, None], raw.k.shape)
    for name, values in raw._asdict().items():
        np.testing.assert_allclose(found[f"{name}_composition"], values - baseline.mean)
        np.testing.assert_allclose(found[f"{name}_composition_z"], (values - baseline.mean) / baseline.sd)
        assert np.isfinite(found[f"{name}_composition"][defined]).all()
        assert np.isnan(found[f"{name}_composition"][~defined]).all()


@pytest.mark.parametrize("n_layers", [0, 1])
def test_a_model_without_earlier_heads_has_none(n_layers: int) -> None:
    reason = MEASUREMENT.why_not(context(ModelConfig(n_layers=n_layers)))
    assert reason is not None
    assert f"model.n_layers = {n_layers}" in reason
    assert MEASUREMENT.why_not(context(ModelConfig())) is None
