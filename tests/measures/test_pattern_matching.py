"""Pattern matching on lines written by hand, against loops, and with heads whose attention is made up."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.config import Config, DataConfig, ModelConfig
from icl_jax.data import open_corpus
from icl_jax.data.corpora.patterns import tokenizer
from icl_jax.maths.activations import patterns
from icl_jax.measures.measurement import Context
from icl_jax.measures.pattern_matching import MEASUREMENT, label_keys, pattern_matching
from tests.analysis.random_snapshots import context, stacked

MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=53, vocab_size=67)
CONFIG = Config(model=MODEL, data=DataConfig(source="patterns", held_out_rows=130))


@pytest.fixture(scope="module")
def lines() -> Context:
    corpus = open_corpus(CONFIG)
    return Context(
        CONFIG, corpus.held_out(130), corpus.probe_tokens(), corpus.bos_id, 0, None, corpus.label_names,
        corpus.held_out_labels(130),
    )  # fmt: skip


def test_keys_by_hand() -> None:
    text = "july frog: 3\nmay pear: 0\njune lion: 3\njune frog: 3\njuly frog: 3\n"
    row = np.array([[0, *tokenizer().encode(text).ids]], np.int32)
    shown = np.zeros(row.shape, np.uint8)
    shown[0, [3, 7, 11, 15, 19]] = [1, 1, 2, 2, 3]
    same, labels = label_keys(row, shown)
    # The query is the token before the label: line 3 matches line 1, line 4 lines 1 and 3; line 5 says line 1 again.
    expected = np.zeros((2, 20, 20), bool)
    expected[0, 10, 3] = expected[0, 14, [3, 11]] = True
    expected[1, 10, [3, 7]] = expected[1, 14, [3, 7, 11]] = True
    np.testing.assert_array_equal([same[0], labels[0]], expected)

    uniform = np.tri(20) / np.arange(1, 21)[:, None]
    resting = np.eye(1, 20) * np.ones((20, 1))
    matching = resting.copy()
    matching[10, [0, 3]] = 0.75, 0.25
    matching[14] = np.eye(20)[11]
    pattern = jnp.asarray(np.stack([uniform, resting, matching])[None], jnp.float32)
    share, attention = pattern_matching(pattern, jnp.asarray(same), jnp.asarray(labels))
    np.testing.assert_allclose(share, [(1 / 2 + 2 / 3) / 2, 0, 1], atol=1e-6)
    np.testing.assert_allclose(attention, [(1 / 11 + 2 / 15) / 2, 0, (0.25 + 1) / 2], atol=1e-6)


def test_a_random_model_against_loops(lines: Context) -> None:
    setting = dataclasses.replace(lines, held_out=lines.held_out[:5], labels=lines.labels[:5])
    params = stacked(MODEL, 2)
    found = MEASUREMENT.measure(setting, params)
    assert set(found) == set(MEASUREMENT.variables)
    pattern = np.asarray(patterns({name: value[1] for name, value in params.items()}, setting.held_out[:, :-1], MODEL))
    shares, plain, chances = [], [], []
    for b, (row, shown) in enumerate(zip(setting.held_out, setting.labels, strict=True)):
        for q in range(MODEL.n_ctx):
            if shown[q + 1] != 2:
                continue
            earlier = [k for k in range(q) if shown[k]]
            match = [k for k in earlier if row[k] == row[q + 1]]
            to_match, to_all = (pattern[:, b, :, q, keys].sum(axis=0) for keys in (match, earlier))
            shares.append(to_match / to_all)
            plain.append(to_match)
            chances.append(len(match) / len(earlier))
    np.testing.assert_allclose(found["pattern_matching"][1], np.mean(shares, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["pattern_matching_attention"][1], np.mean(plain, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["pattern_matching_chance"], np.mean(chances), rtol=1e-6)


def test_uniform_attention_scores_chance(lines: Context) -> None:
    params = {name: np.zeros_like(value) for name, value in stacked(MODEL, 1).items()}
    found = MEASUREMENT.measure(lines, params)
    chance = found["pattern_matching_chance"][0]
    np.testing.assert_allclose(found["pattern_matching"], chance, rtol=1e-5)
    assert 0.25 < chance < 0.45  # four pairs, and the one looked for was there already
    assert (found["pattern_matching_attention"] < 0.1).all()


def test_what_it_does_not_apply_to(lines: Context) -> None:
    assert MEASUREMENT.why_not(lines) is None
    assert "data.source = 'repeats'" in (MEASUREMENT.why_not(context(MODEL)) or "")
    no_layers = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, n_layers=0))
    assert "no layers" in (MEASUREMENT.why_not(dataclasses.replace(lines, config=no_layers)) or "")
    short = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, n_ctx=6))
    cut = {"held_out": lines.held_out[:, :7], "labels": lines.labels[:, :7]}
    assert "too short" in (MEASUREMENT.why_not(dataclasses.replace(lines, config=short, **cut)) or "")
