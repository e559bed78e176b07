"""Known values of docs/measures.md: what heads attend to, and what rows show."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from icl_jax.config import Config, DataConfig, ModelConfig
from icl_jax.data.opening import open_corpus
from icl_jax.maths import head_scores as live
from icl_jax.measures import (
    answers,
    answers_learned,
    head_scores,
    label_ablation,
    label_matching,
    labelled_tokens,
    literal_copying,
    markov_strategies,
    memory_recall,
    same_heads,
    smear,
    translation,
)
from icl_jax.measures.measurement import Context
from icl_jax.measures.pattern_matching import pattern_matching
from icl_jax.model.params import init_params
from tests.data_configs import data_config
from tests.hand_built import repeated_rows, smeared_induction_model
from tests.known_values.model import (
    N_CTX,
    Found,
    V,
    hand_built,
    measured,
    of_hand_built,
    of_uniform,
    of_untrained,
    setting_of,
    uniform_attention,
    zeros,
)


def _head_scores() -> Found:
    rows = {n: jnp.asarray(repeated_rows(1 + 2 * n, vocab_size=128, n_sequences=1, repeat_len=n, n_repeats=2))
            for n in (50, 100)}  # fmt: skip
    four = jnp.asarray(repeated_rows(n_sequences=1))
    stripe = float(np.diagonal(np.asarray(uniform_attention(101)[0, 0]), offset=-49).mean())
    built, untrained = (of(head_scores.MEASUREMENT) for of in (of_hand_built, of_untrained))
    uniform = uniform_attention(N_CTX)
    duplicates = np.tril(np.asarray(four)[0][:, None] == np.asarray(four)[0], k=-1)
    has_earlier = duplicates.any(axis=1)
    duplicate = float((np.asarray(uniform)[0, 0] * duplicates)[has_earlier].sum(axis=1).mean())
    return {
        ("prefix_matching", "uniform attention"): float(live.prefix_matching(uniform, four)[0]),
        ("prefix_matching", "uniform attention, 50 tokens twice"): float(
            live.prefix_matching(uniform_attention(101), rows[50])[0]
        ),
        ("prefix_matching", "uniform attention, 100 tokens twice"): float(
            live.prefix_matching(uniform_attention(201), rows[100])[0]
        ),
        ("duplicate_token", "uniform attention"): duplicate,
        ("induction_stripe", "uniform attention, 50 tokens twice"): stripe,
        ("previous_token", "uniform attention, T = 101"): float(live.previous_token(uniform)[0]),
        ("previous_token", "uniform attention, T = 512"): float(live.previous_token(uniform_attention(512))[0]),
        ("prefix_matching", "untrained"): untrained["prefix_matching"].mean(),
        ("prefix_matching", "hand-built, head 1.0"): built["prefix_matching"][1, 0],
        ("prefix_matching", "hand-built, head 0.0"): built["prefix_matching"][0, 0],
        ("prefix_matching_mean", "hand-built, head 1.0"): built["prefix_matching_mean"][1, 0],
        ("duplicate_token", "hand-built, head 1.0"): built["duplicate_token"][1, 0],
        ("induction_stripe", "hand-built, head 1.0, 50 tokens twice"): built["induction_stripe"][1, 0],
        ("previous_token", "hand-built, head 0.0"): built["previous_token"][0, 0],
        ("previous_token", "hand-built, head 1.0"): built["previous_token"][1, 0],
    }


def _smear() -> Found:
    model = ModelConfig(n_layers=1, d_model=12, n_heads=3, n_ctx=9, vocab_size=V, smeared_keys=True)
    own = measured(smear.MEASUREMENT, setting_of(model, np.zeros((1, 10), np.int32)), init_params(model, seed=0))
    found = {("smear_own", "untrained"): own["smear_own"].mean()}
    for alpha in (20, 0, -1, -3):
        params, config = smeared_induction_model(alpha)
        of = f"one hand-built smeared layer, α = {alpha}".replace("-", "−").replace("hand−built", "hand-built")
        found["prefix_matching", of] = float(head_scores.prefix_matching(params, repeated_rows(), config)[0, 0])
    return found


def _label_matching() -> Found:
    (scores,) = of_hand_built(label_matching.MEASUREMENT)["label_matching"]
    return {("label_matching", f"hand-built, head {layer}.0"): scores[layer, 0] for layer in (0, 1)}


def _label_ablation() -> Found:
    params, setting = hand_built()
    named = dataclasses.replace(setting, label_names=("novel_name",))
    intact, without, _ = measured(label_ablation.MEASUREMENT, named, params)["ablated_label_prob"][:, 0]
    return {
        ("ablated_label_prob", "hand-built, intact"): intact,
        ("ablated_label_prob", "hand-built, without head 1.0"): without,
    }


def _literal_copying() -> Found:
    params, setting = hand_built()
    rng = np.random.default_rng(0)
    new = np.stack([np.concatenate([[0], rng.permutation(np.arange(1, V))[:50], np.ones(51)]) for _ in range(3)])
    found = measured(literal_copying.MEASUREMENT, setting_of(setting.config.model, new.astype(np.int32)), params)
    return {
        ("literal_copying_attention", "hand-built, head 0.0"): found["literal_copying_attention"][0, 0],
        ("literal_copying_attention", "hand-built, head 1.0"): found["literal_copying_attention"][1, 0],
        ("literal_copying_logit", "hand-built, head 1.0"): found["literal_copying_logit"][1, 0],
        ("literal_copying_share", "hand-built, head 1.0"): found["literal_copying_share"][1, 0],
        ("literal_copying_gain", "hand-built"): found["literal_copying_gain"],
    }


def _pattern_matching() -> Found:
    labels = np.zeros((1, 20, 20), bool)
    labels[0, 19, [2, 6, 10, 14]] = labels[0, 15, [2, 6, 10]] = True
    same = labels & (np.arange(20) % 8 == 2)
    chance = np.mean([2 / 4, 2 / 3])
    right = same / np.maximum(1, same.sum(axis=-1, keepdims=True))
    patterns = (jnp.asarray(right[:, None], jnp.float32), uniform_attention(20))
    keys = jnp.asarray(same), jnp.asarray(labels)
    ideal, uniform = (float(pattern_matching(pattern, *keys)[0][0]) for pattern in patterns)
    return {
        ("pattern_matching", "all attention on the right labels"): ideal,
        ("pattern_matching", "uniform attention, less chance"): uniform - chance,
    }


def _labelled_tokens() -> Found:
    found = of_uniform(labelled_tokens.MEASUREMENT)
    return {
        (f"label_{name}", "uniform, V = 64"): float(found[f"label_{name}"][0])
        for name in ("loss", "prob", "top1", "rank")
    }


def _mixture() -> Context:
    model = ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=53, vocab_size=324)
    config = Config(model=model, data=data_config(source="mixture", held_out_rows=128))
    corpus = open_corpus(config)
    rows, labels = corpus.held_out(128), corpus.held_out_labels(128)
    return Context(config, rows, corpus.probe_tokens(), corpus.bos_id, 0, None, corpus.label_names, labels)


def _answers() -> Found:
    setting = _mixture()
    found = answers.MEASUREMENT.measure(setting, zeros(setting))
    at = setting.label_names.index("glossary")
    return {("answer_prob_all", "uniform, V = 324, one token"): float(found["answer_prob_all"][0, at])}


def _answers_learned() -> Found:
    found = answers_learned.first_reached(np.array([100, 200]), np.array([[0.8], [1.0]]))
    return {("answer_tokens_all", "0.8 at 100 tokens and 1.0 at 200"): float(found[0])}


def _translation() -> Found:
    setting = _mixture()
    found = translation.MEASUREMENT.measure(setting, zeros(setting))
    less = found["translation_attention"][0] - found["translation_chance"][0]
    return {("translation_attention", "uniform attention, less chance"): float(np.abs(less).max())}


def _same_heads() -> Found:
    score = np.array([[0.1, 0.5, 0.2]])
    return {
        ("same_heads_literal_translation", "two scores that order the heads alike"): same_heads.rank_correlation(
            score, score**2
        )
    }


def _markov_strategies() -> Found:
    found: Found = {}
    names = ("uniform", "in-context unigram", "in-context bigram")
    for k in (2, 3):
        model = ModelConfig(n_layers=1, d_model=8, n_heads=2, n_ctx=101, vocab_size=k + 1)
        corpus = open_corpus(Config(model=model, data=DataConfig(source="markov", held_out_rows=4096)))
        rows = corpus.held_out(4096)
        states = rows[:, 1:] - 1
        said = markov_strategies.strategies(states[:, :-1], k, 1)
        loss = -np.log(np.take_along_axis(said, states[None, :, 1:, None], axis=3)[..., 0]).mean(axis=(1, 2))
        found |= {("strategy_loss", f"k = {k}, {name}"): value for name, value in zip(names, loss, strict=True)}
        chances = corpus.held_out_chains(4096)[np.arange(4096)[:, None], states[:, :-1], states[:, 1:]]
        found["true_chain_loss", f"k = {k}"] = -np.log(chances).mean()
    params = {**init_params(model, seed=0), "W_U": np.zeros((8, 4), np.float32)}
    params["W_E"] = np.asarray(params["W_E"])
    setting = Context(Config(model=model, data=DataConfig(source="markov")), rows[:64], corpus.probe_tokens(), 0, 0)
    kl = measured(markov_strategies.MEASUREMENT, setting, params)["strategy_kl"][0]
    # Its fourth token is BOS, to which the strategy gives nothing.
    found["strategy_kl", "uniform model against uniform strategy, k = 3"] = kl - math.log(4 / 3)
    return found


def _memory_recall() -> Found:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(2, 8, 64, 16)) for name in ("W_Q", "W_K", "W_V")}
    weights |= {"W_O": rng.normal(size=(2, 8, 16, 64)), "W_E": rng.normal(size=(65, 64))}
    weights |= {"W_U": rng.normal(size=(64, 65))}
    params, setting = hand_built()
    built = {name: np.asarray(value) for name, value in params.items()}
    triggers = np.arange(1, V)
    random = memory_recall.trigger_recall(weights, np.arange(1, 65))
    return {
        ("output_recall", "random"): memory_recall.output_recall(weights).mean(),
        ("trigger_recall", "random, 64 triggers"): random[0, :, 1].mean(),
        ("previous_recall", "hand-built, head 0.0"): memory_recall.previous_recall(built, setting.config.model)[0, 0],
        ("output_recall", "hand-built, head 1.0"): memory_recall.output_recall(built)[1, 0],
        ("trigger_recall", "hand-built, heads 0.0 and 1.0"): memory_recall.trigger_recall(built, triggers)[0, 0, 1, 0],
    }  # fmt: skip
