"""Strategies and match attention by hand, against simulations in loops, and against the published losses."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import Config, DataConfig, ModelConfig
from icl_jax.data import open_corpus
from icl_jax.data.corpora.markov import MarkovCorpus
from icl_jax.maths.activations import as_jax, patterns
from icl_jax.maths.icl_score import icl_windowed
from icl_jax.measures import icl_floor
from icl_jax.measures.markov_strategies import MEASUREMENT, N_LATE, context_codes, match_keys, strategies
from icl_jax.measures.measurement import Context, UndefinedError
from icl_jax.model.forward import forward
from icl_jax.rundir import RunDir
from icl_jax.train.held_out import take_held_out
from tests.analysis.random_snapshots import context, stacked
from tests.analysis.small_runs import config_of
from tests.data_configs import data_config

K, T = 3, 29
MODEL = ModelConfig(n_layers=2, d_model=6, n_heads=3, n_ctx=T, vocab_size=K + 1)
MODEL_OF_STORIES = dataclasses.replace(MODEL, vocab_size=403)


def rows_of(order: int = 1, n_rows: int = 7) -> Context:
    config = Config(model=MODEL, data=data_config(source="markov", order=order, held_out_rows=130))
    corpus = open_corpus(config)
    chains = corpus.held_out_chains(n_rows)
    return Context(config, corpus.held_out(n_rows), corpus.probe_tokens(), corpus.bos_id, 0, chains=chains)


def test_strategies_by_hand() -> None:
    # States a b a a; after each: uniform, unigram (count + 1) / (t + 3), bigram of what followed the same state.
    found = strategies(np.array([[0, 1, 0, 0]]), 3, 1)[:, 0]
    np.testing.assert_allclose(found[0], np.full((4, 3), 1 / 3))
    np.testing.assert_allclose(found[1], [[2 / 4, 1 / 4, 1 / 4], [2 / 5, 2 / 5, 1 / 5], [3 / 6, 2 / 6, 1 / 6],
                                          [4 / 7, 2 / 7, 1 / 7]])  # fmt: skip
    third = [1 / 3] * 3
    np.testing.assert_allclose(found[2], [third, third, [1 / 4, 2 / 4, 1 / 4], [2 / 5, 2 / 5, 1 / 5]])


def test_strategies_of_two_states_by_hand() -> None:
    found = strategies(np.array([[0, 1, 0, 1, 1, 0, 1]]), 2, 2)[3, 0]
    half = [1 / 2] * 2
    # Contexts ab, ba, ab, bb, ba, ab: ab was followed by a, then b, and ba by b.
    expected = [half, half, half, [2 / 3, 1 / 3], half, [1 / 3, 2 / 3], half]
    np.testing.assert_allclose(found, expected)


def simulated(k: int, n_rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses of the uniform, unigram, bigram and true chain, all rows and steps, by plain counting."""
    rng = np.random.default_rng(k)
    losses = np.zeros((4, n_rows, length))
    for row in range(n_rows):
        chain = rng.dirichlet(np.ones(k), k)
        state, counts, pairs = int(rng.integers(k)), np.zeros(k), np.zeros((k, k))
        for t in range(length):
            counts[state] += 1
            chance = chain[state] / chain[state].sum()
            after = int(rng.choice(k, p=chance))
            unigram, bigram = (counts[after] + 1) / (t + 1 + k), (pairs[state, after] + 1) / (pairs[state].sum() + k)
            losses[:, row, t] = -np.log([1 / k, unigram, bigram, chance[after]])
            pairs[state, after] += 1
            state = after
    return losses.mean(axis=(1, 2)), losses[..., -N_LATE:].mean(axis=(1, 2))


# As in docs/measures.md, nats: mean over 100 positions and over the last 20, of uniform, in-context unigram and bigram;
# then the chain.
REFERENCE = {
    2: ((0.6931, 0.578, 0.511), (0.6931, 0.568, 0.491), 0.482),
    3: ((1.0986, 1.004, 0.886), (1.0986, 0.989, 0.850), 0.819),
    5: ((1.609, 1.569, 1.419), (1.609, 1.545, 1.360), None),
    8: ((2.079, 2.088, 1.944), (2.079, 2.060, 1.882), None),
}


@pytest.mark.parametrize("k", REFERENCE)
def test_losses_of_the_strategies_are_the_published_ones(k: int) -> None:
    model = dataclasses.replace(MODEL, n_layers=1, vocab_size=k + 1, n_ctx=101)
    corpus = open_corpus(Config(model=model, data=DataConfig(source="markov", held_out_rows=4096)))
    states = corpus.held_out(4096)[:, 1:] - 1
    said = strategies(states[:, :-1], k, 1)
    loss = -np.log(np.take_along_axis(said, states[None, :, 1:, None], axis=3)[..., 0])
    mean, late, chain = REFERENCE[k]
    # Both are samples: the mean over so many rows is good to about 0.002.
    np.testing.assert_allclose(loss.mean(axis=(1, 2)), mean, atol=0.005)
    np.testing.assert_allclose(loss[..., -N_LATE:].mean(axis=(1, 2)), late, atol=0.005)
    if chain is not None:
        chances = corpus.held_out_chains(4096)[np.arange(4096)[:, None], states[:, :-1], states[:, 1:]]
        assert -np.log(chances).mean() == pytest.approx(chain, abs=0.005)


def test_a_simulation_in_loops_agrees() -> None:
    k, n_rows = 3, 600
    model = dataclasses.replace(MODEL, vocab_size=k + 1, n_ctx=41)
    config = Config(model=model, data=DataConfig(source="markov", held_out_rows=2000))
    corpus = open_corpus(config)
    rows = corpus.held_out(2000)
    chains = corpus.held_out_chains(len(rows))
    setting = Context(config, rows, corpus.probe_tokens(), corpus.bos_id, 0, chains=chains)
    found = MEASUREMENT.measure(setting, stacked(model, 1))
    mean, late = simulated(k, n_rows, 40)
    # Rows differ by about 0.15 in their mean loss.
    np.testing.assert_allclose(found["strategy_loss"][0], mean[:3], atol=4 * 0.15 / n_rows**0.5)
    np.testing.assert_allclose(found["true_chain_loss"][0], mean[3], atol=4 * 0.15 / n_rows**0.5)
    np.testing.assert_allclose(found["strategy_loss_late"][0], late[:3], atol=4 * 0.2 / n_rows**0.5)
    np.testing.assert_allclose(found["true_chain_loss_late"][0], late[3], atol=4 * 0.2 / n_rows**0.5)


@pytest.mark.parametrize("order", [1, 2])
def test_a_random_model_against_loops(order: int) -> None:
    setting, params = rows_of(order), stacked(MODEL, 2)
    found = MEASUREMENT.measure(setting, params)
    assert set(found) == set(MEASUREMENT.variables)
    one = as_jax({name: value[1] for name, value in params.items()})
    logits = np.asarray(forward(one, jnp.asarray(setting.held_out[:, :-1]), MODEL), np.float64)
    log_prob = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    pattern = np.asarray(patterns(one, setting.held_out[:, :-1], MODEL))
    chains = open_corpus(setting.config).held_out_chains(7)
    kl, loss, model_loss, chain_loss, mass, chance = [], [], [], [], [], []
    for b, row in enumerate(setting.held_out):
        states = (row[1:] - 1).tolist()
        kl.append([])
        for q in range(1, T):  # the token at q is state q - 1, the next one state q
            seen = states[:q]
            keys = []
            if q > order:
                last = row[q - order + 1 : q + 1].tolist()
                keys = [s for s in range(order + 1, q + 1) if row[s - order : s].tolist() == last]
            if keys:
                mass.append(pattern[:, b, :, q, keys].sum(axis=0))
                chance.append(len(keys) / (q + 1))
            if q < order:
                continue
            said = [np.full(K, 1 / K)]
            for c in range(order + 1):
                counts = np.ones(K)
                for t in range(c, q):
                    if states[t - c : t] == seen[q - c :]:
                        counts[states[t]] += 1
                said.append(counts / counts.sum())
            kl[-1].append([np.sum(p * (np.log(p) - log_prob[b, q, 1:])) for p in said])
            loss.append([-np.log(p[states[q]]) for p in said])
            model_loss.append(-log_prob[b, q, states[q] + 1])
            digits = int("".join(map(str, seen[-order:])), K)
            chain_loss.append(-np.log(chains[b, digits, states[q]]))
    kl_TC = np.mean(kl, axis=0)
    np.testing.assert_allclose(found["strategy_kl_by_position"][1][:, order:], kl_TC.T, rtol=1e-4)
    assert np.isnan(found["strategy_kl_by_position"][:, :, :order]).all()
    np.testing.assert_allclose(found["strategy_kl"][1], kl_TC.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["strategy_kl_late"][1], kl_TC[-N_LATE:].mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["strategy_loss"][1], np.mean(loss, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["markov_loss"][1], np.mean(model_loss), rtol=1e-5)
    late = np.array(model_loss).reshape(7, -1)[:, -N_LATE:].mean()
    np.testing.assert_allclose(found["markov_loss_late"][1], late, rtol=1e-5)
    np.testing.assert_allclose(found["true_chain_loss"][1], np.mean(chain_loss), rtol=1e-6)
    np.testing.assert_allclose(found["match_attention"][1], np.mean(mass, axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["match_attention_chance"][1], np.mean(chance), rtol=1e-6)


def test_match_keys_by_hand() -> None:
    row = np.array([[0, 1, 2, 1, 1, 2]])
    keys = [sorted(np.flatnonzero(query)) for query in match_keys(row, 1)[0]]
    assert keys == [[], [], [], [2], [2, 4], [3]]
    keys = [sorted(np.flatnonzero(query)) for query in match_keys(row, 2)[0]]
    assert keys == [[], [], [], [], [], [3]]
    assert context_codes(np.array([[1, 2, 0, 2]]), 3, 2).tolist() == [[1, 5, 6, 2]]


def test_a_uniform_model_has_the_uniform_strategys_loss() -> None:
    setting = rows_of()
    params = {name: np.zeros_like(value) for name, value in stacked(MODEL, 1).items()}
    found = MEASUREMENT.measure(setting, params)
    # The model is uniform over BOS too.
    np.testing.assert_allclose(found["strategy_kl"][0, 0], np.log(4 / 3), rtol=1e-5)
    np.testing.assert_allclose(found["markov_loss"][0], np.log(4), rtol=1e-5)
    np.testing.assert_allclose(found["match_attention"], found["match_attention_chance"][0], rtol=1e-5)


def test_rows_without_their_transitions_have_no_true_chain() -> None:
    found = MEASUREMENT.measure(dataclasses.replace(rows_of(), chains=None), stacked(MODEL, 1))
    assert np.isnan(found["true_chain_loss"]).all()
    assert np.isfinite(found["strategy_loss"]).all()
    assert "held_out.zarr" in MEASUREMENT.variables["true_chain_loss"].missing


def test_a_run_directory_is_enough_for_the_true_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the corpus may not be there, or its generator may draw other rows."""
    config = config_of(MODEL, 1)
    config = dataclasses.replace(config, data=data_config(source="markov", held_out_rows=130))
    corpus = open_corpus(config)
    expected = rows_of(n_rows=len(corpus.held_out(130)))
    run = RunDir.create(
        str(tmp_path / "run"), config, corpus_sha256=corpus.fingerprint, held_out=take_held_out(config, corpus)
    )
    run.save_snapshot(0, {name: value[0] for name, value in stacked(MODEL, 1).items()})
    monkeypatch.setattr(MarkovCorpus, "_make_block", lambda *_args: pytest.fail("the corpus was drawn again"))
    found = analyze(run, only=["markov_strategies"])
    before = MEASUREMENT.measure(expected, stacked(MODEL, 1))["true_chain_loss"]
    np.testing.assert_allclose(found["true_chain_loss"], before, rtol=1e-6)


def test_what_it_does_not_apply_to() -> None:
    assert MEASUREMENT.why_not(rows_of()) is None
    assert "data.source = 'repeats'" in (MEASUREMENT.why_not(context(MODEL)) or "")
    no_layers = dataclasses.replace(rows_of().config, model=dataclasses.replace(MODEL, n_layers=0))
    assert "no layers" in (MEASUREMENT.why_not(dataclasses.replace(rows_of(), config=no_layers)) or "")


@pytest.mark.parametrize("order", [1, 2])
def test_the_floor_is_what_bayes_says(order: int) -> None:
    setting = rows_of(order, 130)
    states = setting.held_out[:, 1:].astype(np.int64) - 1
    said = np.full((130, T, K), 1 / K)
    for row, t in np.ndindex(130, T):
        here = tuple(states[row, t - order : t])
        if t >= order:
            follows = [states[row, s] for s in range(order, t) if tuple(states[row, s - order : s]) == here]
            said[row, t] = (np.bincount(follows, minlength=K) + 1) / (len(follows) + K)
    by_row = icl_windowed(-np.log(np.take_along_axis(said, states[..., None], axis=2)[..., 0]))
    row_icl = np.stack([by_row, by_row + 0.25 + np.arange(130) % 2])
    found = icl_floor.derive(setting, xr.Dataset({"row_icl": (("snapshot", "row"), row_icl)}))
    assert found["floor_icl"] == pytest.approx(by_row.mean())
    assert found["floor_icl_sem"] == pytest.approx(by_row.std(ddof=1) / np.sqrt(130))
    np.testing.assert_allclose(found["icl_over_floor"], [0, 0.75], atol=1e-12)
    np.testing.assert_allclose(found["icl_over_floor_sem"], [0, 0.5 / np.sqrt(129)], atol=1e-12)


def test_where_the_floor_is_not_known_it_is_said() -> None:
    setting = rows_of()
    text = dataclasses.replace(setting, config=Config(model=MODEL, data=data_config(source="triggers")))
    assert "data.source = 'triggers'" in str(icl_floor.why_not(text))
    unigram = Config(model=MODEL, data=data_config(source="markov", prior="unigram"))
    other = dataclasses.replace(setting, config=Config(model=MODEL_OF_STORIES, data=data_config(source="stories")))
    for unknown in (dataclasses.replace(setting, config=unigram), other):
        with pytest.raises(UndefinedError, match="not known of these held-out rows"):
            icl_floor.derive(unknown, xr.Dataset())
