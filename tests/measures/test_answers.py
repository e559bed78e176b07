"""Whole answers of the mixture: against loops over a random model's losses, and counted by hand."""

import dataclasses
import functools

import numpy as np
import pytest
import xarray as xr

from icl_jax.config import Config, ModelConfig, ProbeConfig
from icl_jax.data.corpora.mixture import MixtureCorpus
from icl_jax.maths.activations import patterns
from icl_jax.measures import answers, answers_learned, pattern_matching, same_heads, translation
from icl_jax.measures.measurement import Context
from icl_jax.measures.snapshot import predictions
from tests.analysis.random_snapshots import context, stacked
from tests.data_configs import data_config

N_ROWS = 48
MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=53, vocab_size=331)
CONFIG = Config(
    model=MODEL, data=data_config(source="mixture", held_out_rows=N_ROWS), probes=ProbeConfig(held_out_rows=1)
)
PARAMS = stacked(MODEL, 2)


@pytest.fixture(scope="module")
def rows() -> Context:
    corpus = MixtureCorpus(CONFIG)
    return Context(
        CONFIG, corpus.held_out(N_ROWS), corpus.probe_tokens(), corpus.bos_id, 0, None, corpus.label_names,
        corpus.held_out_labels(N_ROWS),
    )  # fmt: skip


def test_answers_by_hand() -> None:
    labels = np.array(
        [[0, 0, 2, 2, 0, 1, 0, 2, 2, 1, 1, 0, 3, 3], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]], np.uint8
    )
    found = answers.answers_of(labels)
    # The last of each row may have been cut off.
    assert list(zip(*(part.tolist() for part in found), strict=True)) == [
        (0, 2, 4, 2, 0), (0, 5, 6, 1, 1), (0, 7, 9, 2, 2), (0, 9, 11, 1, 3),
    ]  # fmt: skip


def test_a_random_model_against_loops(rows: Context) -> None:
    found = answers.MEASUREMENT.measure(rows, PARAMS)
    assert set(found) == set(answers.MEASUREMENT.variables)
    loss, rank = predictions({name: value[1] for name, value in PARAMS.items()}, rows.held_out, MODEL)
    assert rows.labels is not None
    probs: dict[tuple[int, int], list[tuple[float, bool]]] = {}
    for row, labels in enumerate(rows.labels):
        n, t = 0, 1
        while t < len(labels):
            end = t
            while end < len(labels) and labels[end] == labels[t]:
                end += 1
            if labels[t] and end < len(labels):
                of_tokens = np.asarray(loss[row, t - 1 : end - 1], np.float64)
                is_right = bool((np.asarray(rank[row, t - 1 : end - 1]) == 1).all())
                probs.setdefault((int(labels[t]) - 1, min(n, 8)), []).append((np.exp(-of_tokens.sum()), is_right))
            n += bool(labels[t])
            t = end
    assert len(probs) > 40
    for (label, n), of_answers in probs.items():
        p, right = np.array(of_answers).T
        np.testing.assert_allclose(found["answer_prob"][1, label, n], p.mean(), rtol=1e-4)
        np.testing.assert_allclose(found["answer_right"][1, label, n], right.mean(), atol=1e-6)
        if len(p) > 1:
            np.testing.assert_allclose(found["answer_sem"][1, label, n], p.std(ddof=1) / np.sqrt(len(p)), rtol=1e-3)
    assert np.isfinite(found["answer_prob"][1]).sum() == len(probs)
    for label in {label for label, _ in probs}:
        every = [p for (of, _), each in probs.items() if of == label for p, _ in each]
        np.testing.assert_allclose(found["answer_prob_all"][1, label], np.mean(every), rtol=1e-4)


def test_when_a_level_is_first_reached() -> None:
    tokens = np.array([0, 100, 200, 300])
    curves = np.array([[0.0, 0.1, 0.95], [0.8, 0.2, 0.1], [1.0, 0.3, np.nan], [0.2, 0.4, 1.0]])
    np.testing.assert_allclose(answers_learned.first_reached(tokens, curves), [150, np.nan, 0])
    data = xr.Dataset(
        {
            "answer_prob": (("snapshot", "kind", "examples"), curves[:, None]),
            "answer_prob_all": (("snapshot", "label"), curves),
        },
        coords={"tokens": ("snapshot", tokens)},
    )
    found = answers_learned.derive(context(MODEL), data)
    np.testing.assert_allclose(found["answer_tokens"], [[150, np.nan, 0]])


def test_translation_against_a_reader_of_the_stories(rows: Context) -> None:
    corpus = MixtureCorpus(CONFIG)
    native, foreign = (corpus.decode(ids) for ids in corpus.dictionary())
    native_of = dict(zip(foreign, native, strict=True))
    found = translation.MEASUREMENT.measure(rows, PARAMS)
    told = [row for row in rows.held_out if corpus.decode(row[1:2]) == ["translation:"]]
    pattern = np.asarray(patterns({n: v[1] for n, v in PARAMS.items()}, np.stack(told)[:, :-1], MODEL))
    scores, chances = [], []
    for b, row in enumerate(told):
        words = corpus.decode(row)
        for q in range(len(words) - 1):
            if words[q + 1] in native_of:
                start = max(i for i in range(q + 1) if words[i] in (";", "translation:"))
                keys = [k for k in range(start, q + 1) if words[k] == native_of[words[q + 1]]]
                assert keys
                scores.append(pattern[:, b, :, q, keys].sum(axis=0))
                chances.append(len(keys) / (q + 1))
    np.testing.assert_allclose(found["translation_attention"][1], np.mean(scores, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["translation_chance"], np.mean(chances), rtol=1e-5)


def test_patterns_are_matched_in_their_rows_alone(rows: Context) -> None:
    assert pattern_matching.why_not(rows) is None
    assert rows.labels is not None
    corpus = MixtureCorpus(CONFIG)
    is_theirs = np.array([corpus.decode(row[1:2]) == ["patterns:"] for row in rows.held_out])
    alone = dataclasses.replace(rows, held_out=rows.held_out[is_theirs], labels=rows.labels[is_theirs])
    found = pattern_matching.MEASUREMENT.measure(rows, PARAMS)
    for name, values in pattern_matching.MEASUREMENT.measure(alone, PARAMS).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_rank_correlations() -> None:
    a = np.array([[0.1, 0.5], [0.2, 0.9]])
    assert same_heads.rank_correlation(a, np.exp(a)) == pytest.approx(1)
    assert same_heads.rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 1 3 2 4 and 1.5 1.5 3.5 3.5.
    assert same_heads.rank_correlation(a, np.array([[0, 0], [1, 1]])) == pytest.approx(1 / np.sqrt(5))
    assert np.isnan(same_heads.rank_correlation(a, np.zeros((2, 2))))


def test_other_corpora_are_told_why() -> None:
    for measurement in (answers.MEASUREMENT, translation.MEASUREMENT):
        assert "data.source = 'repeats'" in (measurement.why_not(context(MODEL)) or "")
    sums = functools.partial(data_config, source="mixture", translation=0.0)
    other = dataclasses.replace(context(MODEL), config=Config(model=MODEL, data=sums()), label_names=("new_sum",))
    assert "no stories" in (translation.MEASUREMENT.why_not(other) or "")
