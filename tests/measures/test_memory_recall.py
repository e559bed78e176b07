"""Memory recall on weights built by hand, against loops, and where chance is known."""

import dataclasses

import numpy as np
import pytest

from icl_jax.config import Config, DataConfig, ModelConfig
from icl_jax.data import open_corpus
from icl_jax.maths.activations import patterns
from icl_jax.measures.measurement import Context
from icl_jax.measures.memory_recall import MEASUREMENT, output_recall, previous_recall, trigger_recall
from tests.analysis.random_snapshots import context, stacked
from tests.data_configs import data_config
from tests.hand_built import induction_model

MODEL = ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=43, vocab_size=66, positions="standard")
DATA = data_config(source="triggers", n_triggers=4, held_out_rows=130)


def rows_of(model: ModelConfig = MODEL, n_rows: int = 9, data: DataConfig = DATA) -> Context:
    config = Config(model=model, data=data)
    corpus = open_corpus(config)
    return Context(
        config, corpus.held_out(n_rows), corpus.probe_tokens(), corpus.bos_id, 0, None, corpus.label_names,
        corpus.held_out_labels(n_rows),
    )  # fmt: skip


def test_the_hand_built_induction_model_remembers_everything() -> None:
    params, model = induction_model(n_ctx=70, vocab_size=65)
    one = {name: np.asarray(value)[None] for name, value in params.items()}
    found = MEASUREMENT.measure(rows_of(model), one)
    assert found["output_recall"].tolist() == [[[0], [1]]]  # layer 0 writes where the unembedding does not read
    # Layer 1 knows no positions: all keys are alike to it, and the first of them is right for position 1 alone.
    assert found["previous_recall"].tolist() == [[[1], [1 / 69]]]
    assert found["previous_recall_early"].tolist() == [[[1], [1 / 63]]]
    assert found["trigger_recall"][0, 0, 0, 1, 0] == 1
    assert np.isnan(found["trigger_recall"][0, 1]).all()
    assert np.isnan(found["trigger_recall"][0, :, :, 0]).all()
    assert found["argmax_previous"][0, 0, 0] == 1
    assert found["argmax_match"][0, 1, 0] == 1
    # Forgetting half the characters, triggers and positions costs half of each.
    W_V = one["W_V"].copy()
    W_V[:, 1, 0, 33:65] = 0
    assert output_recall({**one, "W_V": W_V}).tolist() == [[[0], [0.5]]]
    W_V = one["W_V"].copy()
    W_V[:, 0, 0, [3, 4]] = 0
    assert trigger_recall({**one, "W_V": W_V}, np.arange(1, 5))[0, 0, 0, 1, 0] == 0.5
    W_K = one["W_K"].copy()
    W_K[:, 0, 0, -35:] = 0  # the later half of the positions
    half = previous_recall({**one, "W_K": W_K}, model)[0, 0, 0]
    assert half == pytest.approx(35 / 69)  # position 35 still finds 34
    assert previous_recall({**one, "W_K": W_K}, model, 36)[0, 0, 0] == 1


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm", "none"])
def test_a_random_model_against_loops(norm: str) -> None:
    model = dataclasses.replace(MODEL, norm=norm, position_embedding="learned")
    setting, params = rows_of(model), stacked(model, 2)
    found = MEASUREMENT.measure(setting, params)
    assert set(found) == set(MEASUREMENT.variables)
    one = {name: np.asarray(value[1], np.float64) for name, value in params.items()}

    def normed(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """A norm but for its scale."""
        if weight is None:
            return x
        return (x - x.mean() if norm == "layernorm" else x) * weight

    def ln1(x: np.ndarray, layer: int) -> np.ndarray:
        return normed(x, one["ln1_w"][layer] if norm != "none" else None)

    final = one.get("ln_final_w")
    for layer in range(2):
        for head in range(3):
            W_Q, W_K, W_V, W_O = (one[name][layer, head] for name in ("W_Q", "W_K", "W_V", "W_O"))
            copied = [
                np.argmax(normed(ln1(one["W_E"][v], layer) @ W_V @ W_O, final) @ one["W_U"]) == v for v in range(1, 65)
            ]
            assert found["output_recall"][1, layer, head] == pytest.approx(np.mean(copied))
            q, k = ([ln1(p, layer) @ W for p in one["W_pos"]] for W in (W_Q, W_K))
            right = [np.argmax([q[t] @ k[s] for s in range(t + 1)]) == t - 1 for t in range(1, model.n_ctx)]
            assert found["previous_recall"][1, layer, head] == pytest.approx(np.mean(right))
    for src in range(3):
        for dst in range(3):
            W_V, W_O = one["W_V"][0, src], one["W_O"][0, src]
            scale = [np.sqrt(np.mean(x * x)) if norm != "none" else 1 for x in _centred(one["W_E"], norm)]
            keys = [ln1(ln1(one["W_E"][v], 0) / scale[v] @ W_V @ W_O, 1) @ one["W_K"][1, dst] for v in range(1, 5)]
            asked = [ln1(one["W_E"][v], 1) @ one["W_Q"][1, dst] for v in range(1, 5)]
            right = [np.argmax([asked[v] @ key for key in keys]) == v for v in range(4)]
            assert found["trigger_recall"][1, 0, src, 1, dst] == pytest.approx(np.mean(right))

    pattern = np.asarray(patterns({name: value[1] for name, value in params.items()}, setting.held_out[:, :-1], model))
    assert setting.labels is not None
    previous, match = [], []
    for b, row in enumerate(setting.held_out):
        for q in range(model.n_ctx):
            most = pattern[:, b, :, q].argmax(axis=-1)
            if q:
                previous.append(most == q - 1)
            if row[q] in (1, 2, 3, 4) and row[q] in row[1:q]:
                match.append((most >= 2) & (row[most - 1] == row[q]))
    np.testing.assert_allclose(found["argmax_previous"][1], np.mean(previous, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found["argmax_match"][1], np.mean(match, axis=0), rtol=1e-5)


def _centred(x: np.ndarray, norm: str) -> np.ndarray:
    return x - x.mean(axis=-1, keepdims=True) if norm == "layernorm" else x


def test_random_triggers_are_looked_for_among_all_characters() -> None:
    model = dataclasses.replace(MODEL, n_layers=2, d_model=6)
    found = MEASUREMENT.measure(
        rows_of(model, data=data_config(source="triggers", n_triggers=4, choice="random", held_out_rows=130)),
        stacked(model, 8),
    )
    known = found["trigger_recall"][:, 0, :, 1]
    assert known.mean() == pytest.approx(1 / 64, abs=0.015)
    np.testing.assert_allclose(known * 64, np.round(known * 64), atol=1e-9)
    fixed = MEASUREMENT.measure(rows_of(model), stacked(model, 8))["trigger_recall"][:, 0, :, 1]
    assert fixed.mean() == pytest.approx(1 / 4, abs=0.1)


def test_rotary_positions_have_no_embedding() -> None:
    model = dataclasses.replace(MODEL, positions="rotary", d_model=12)
    found = MEASUREMENT.measure(rows_of(model), stacked(model, 1))
    assert np.isnan(found["previous_recall"]).all()
    assert np.isnan(found["previous_recall_early"]).all()
    assert np.isfinite(found["argmax_previous"]).all()
    assert "rotary" in MEASUREMENT.variables["previous_recall"].missing


def test_what_it_does_not_apply_to() -> None:
    assert MEASUREMENT.why_not(rows_of()) is None
    assert "data.source = 'repeats'" in (MEASUREMENT.why_not(context(MODEL)) or "")
    setting = rows_of()
    no_layers = dataclasses.replace(setting.config, model=dataclasses.replace(MODEL, n_layers=0))
    assert "no layers" in (MEASUREMENT.why_not(dataclasses.replace(setting, config=no_layers)) or "")
    never = dataclasses.replace(setting, labels=np.zeros_like(setting.labels))
    assert "too short" in (MEASUREMENT.why_not(never) or "")
