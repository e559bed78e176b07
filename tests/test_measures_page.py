"""docs/measures.md: a heading for every measurement, and every known value that it states, computed."""

import dataclasses
import functools
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from icl_jax.analysis.run_measurements import analyze
from icl_jax.config import Config, DataConfig, ModelConfig, load_config
from icl_jax.config.builtin import builtin_config_path
from icl_jax.data.corpora.stories import StoriesCorpus
from icl_jax.data.opening import open_corpus
from icl_jax.maths import head_scores as live
from icl_jax.maths.finding import find_changes
from icl_jax.maths.frozen_run import frozen_run
from icl_jax.maths.icl_score import icl_score, icl_windowed
from icl_jax.measures import (
    ablation,
    activation_patching,
    answers,
    answers_learned,
    attribution_patching,
    bigrams,
    circuits,
    composition,
    copying,
    head_scores,
    held_out_loss,
    icl_floor,
    label_matching,
    labelled_tokens,
    literal_copying,
    markov_strategies,
    memory_recall,
    patching_agreement,
    path_patching,
    paths,
    qk_trace,
    same_heads,
    seen_bigrams,
    skip_trigrams,
    smear,
    term_importance,
    translation,
)
from icl_jax.measures.bump import bump
from icl_jax.measures.loss_by_log_tokens import derivative_by_log_tokens
from icl_jax.measures.loss_derivative import derivative_by_log_index
from icl_jax.measures.measurement import Context, Measurement
from icl_jax.measures.pattern_matching import pattern_matching
from icl_jax.measures.pca import pca, turning_angles
from icl_jax.measures.steepest_fall import window_in_tokens
from icl_jax.measures.table import TABLE
from icl_jax.model.params import init_params
from tests.analysis.small_runs import hand_built_run
from tests.data_configs import data_config
from tests.hand_built import induction_model, repeated_rows, smeared_induction_model

V, N_CTX, LATER = 64, 101, slice(26, 100)
Found = dict[tuple[str, str], float]
Arrays = dict[str, np.ndarray]


def _page() -> dict[str, str]:
    """The text of every measurement, by its heading."""
    page = (Path(__file__).parents[1] / "docs" / "measures.md").read_text(encoding="utf-8")
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _stated(text: str) -> dict[tuple[str, str], tuple[float, float]]:
    """(variable, of) -> value and how far from it the truth may be: the ± or half of the last digit."""
    stated = {}
    for variable, of, value in re.findall(r"^\| `(\w+)` \| (.+) \| (-?[\d.]+(?: ± [\d.]+)?) \|$", text, re.MULTILINE):
        number, _, tolerance = value.partition(" ± ")
        digits = len(number.partition(".")[2])
        stated[variable, of] = float(number), float(tolerance or 0.51 * 10.0**-digits)
    return stated


def _setting(model: ModelConfig, rows: np.ndarray, labels: np.ndarray | None = None) -> Context:
    names = () if labels is None else ("said_again",)
    config = Config(model=model, data=data_config(phrase_len=2))
    return Context(config, rows, np.arange(1, V, dtype=np.int32), 0, 0, None, names, labels)


def _measured(measurement: Measurement, setting: Context, params: dict) -> Arrays:
    found = measurement.measure(setting, {name: np.asarray(value)[None] for name, value in params.items()})
    return {name: values[0] for name, values in found.items()}


@functools.cache
def _hand_built() -> tuple[dict, Context]:
    """The model; its rows say 25 tokens four times and the first of them again, labelled from the second time on."""
    params, model = induction_model(N_CTX, V)
    rows = repeated_rows(N_CTX)
    rows = np.concatenate([rows, rows[:, 1:2]], axis=1)
    labels = np.zeros(rows.shape, np.uint8)
    labels[:, 27:] = 1
    return params, _setting(model, rows, labels)


def _of_hand_built(measurement: Measurement) -> Arrays:
    params, setting = _hand_built()
    return _measured(measurement, setting, params)


UNTRAINED = ModelConfig(n_layers=2, d_model=48, n_heads=3, n_ctx=N_CTX, vocab_size=V)


def _of_untrained(measurement: Measurement) -> Arrays:
    return _measured(measurement, _setting(UNTRAINED, _hand_built()[1].held_out), init_params(UNTRAINED, seed=0))


def _of_uniform(measurement: Measurement) -> Arrays:
    params, setting = _hand_built()
    return _measured(measurement, setting, {**params, "W_U": np.zeros_like(params["W_U"])})


@functools.cache
def _growing() -> xr.Dataset:
    """Analysis of a run whose head 1.0 grows from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        only = ["phase_change", "token_classes", "ablation_effects", "set_ablation", "set_sizes", "shuffled_context"]
        return analyze(hand_built_run(Path(folder) / "run"), only=only).load()


@functools.cache
def _hand_built_loss() -> np.ndarray:
    params, setting = _hand_built()
    return np.asarray(held_out_loss.held_out_loss(params, setting.held_out, setting.config.model)).mean(axis=0)


def _held_out_loss() -> Found:
    return {
        ("loss_by_position", "uniform, V = 64"): _of_uniform(held_out_loss.MEASUREMENT)["loss_by_position"].mean(),
        ("loss_by_position", "hand-built, first copy"): _hand_built_loss()[:26].mean(),
        ("loss_by_position", "hand-built, later copies"): _hand_built_loss()[LATER].mean(),
    }


def _icl_floor() -> Found:
    config = load_config(builtin_config_path("stories-2l"))
    rows = StoriesCorpus(config).held_out(1024)
    context = dataclasses.replace(_hand_built()[1], config=config, held_out=rows)
    by_row = np.zeros((1, 1024))
    found = icl_floor.derive(context, xr.Dataset({"row_icl": (("snapshot", "row"), by_row)}))
    return {
        ("floor_icl", "stories, 1,024 held-out rows"): float(found["floor_icl"]),
        ("floor_icl_sem", "stories, 1,024 held-out rows"): float(found["floor_icl_sem"]),
        ("icl_over_floor", "uniform, stories"): float(found["icl_over_floor"][0]),
    }


def _icl() -> Found:
    loss = _hand_built_loss()
    return {
        ("icl_score", "uniform, V = 64"): icl_score(np.full(N_CTX, math.log(V))),
        ("icl_score", "hand-built"): icl_score(loss),
        ("icl_windowed", "hand-built"): icl_windowed(loss),
    }


def _loss_derivative() -> Found:
    index = np.arange(1, 513)
    falling, flat = 5 - 0.4 * np.log(index), np.full(512, math.log(V))
    derivative = derivative_by_log_index(np.stack([falling, flat]))[1]
    return {
        ("loss_derivative", "a loss of 5 − 0.4 ln(index)"): derivative[0, 3:-1].mean(),
        ("loss_derivative", "uniform, V = 64"): np.abs(derivative[1]).max(),
    }


# Snapshots as a run has them.
TOKENS = np.unique(np.concatenate([[0], np.geomspace(1, 1000, 60).round(), np.linspace(10, 1000, 60).round()])) * 1000
FALL = -np.clip((TOKENS - 500e3) / 200e3, 0, 1)


def _bump() -> Found:
    convex, fall = (bump(TOKENS, curve, first_tokens=0.0)[2] for curve in (4 * np.exp(-TOKENS / 3e5), FALL))
    return {
        ("bump_height", "a convex curve"): convex,
        ("bump_height", "a fall of 1 nat at 50 to 70 % of training"): fall,
    }


RISE = 1 / (1 + 9 ** -((2 * TOKENS / 1e6 - 1.2) / 0.2))


def _phase_change() -> Found:
    (change,) = find_changes(TOKENS, -0.4 * RISE, schedule=None, direction=-1).changes
    straight = find_changes(TOKENS, -0.4 * TOKENS / TOKENS[-1], schedule=None, direction=-1)
    of = "a step of 0.4 nats, 10 % done at 0.5 M tokens and 90 % at 0.7 M"
    return {
        ("change_start", f"{of}, in M"): change.start / 1e6,
        ("change_end", f"{of}, in M"): change.end / 1e6,
        ("change_size", of): change.size,
        ("change_share", of): change.share,
        ("change_width", f"{of}, in M"): change.width / 1e6,
        ("change_p", "a straight fall"): straight.p_value,
    }


def _label_changes() -> Found:
    (change,) = find_changes(TOKENS, 0.1 + 0.8 * RISE, schedule=None, direction=1).changes
    return {("label_change_size", "a probability that steps from 0.1 to 0.9"): change.size}


def _head_changes() -> Found:
    (change,) = find_changes(TOKENS, 0.1 + 0.8 * RISE, schedule=None, direction=1, n_tests=96).changes
    return {("head_change_size", "a score that steps from 0.1 to 0.9"): change.size}


def _loss_changes() -> Found:
    (change,) = find_changes(TOKENS, 4 - 0.5 * RISE, schedule=None, direction=-1).changes
    return {("loss_change_size", "a loss that steps from 4 to 3.5 nats"): change.size}


def _steepest_fall() -> Found:
    start, end = window_in_tokens(TOKENS, 0.4 * FALL)
    drop = float(np.diff(np.interp([start, end], TOKENS, 0.4 * FALL))[0])
    of = "a fall of 0.4 nats between two plateaus"
    return {("steepest_drop", of): drop, ("steepest_share", of): drop / -0.4}


def _token_classes() -> Found:
    names = ("induction_correct_change", "new_prefix_change", "induction_wrong_share")
    return {(name, "a run whose head 1.0 grows, V = 24"): float(_growing()[name]) for name in names}


def _pca() -> Found:
    explained = pca([np.random.default_rng(0).normal(size=(9, 5))], n_components=5).explained.sum()
    straight = np.stack([np.arange(5.0), 2 * np.arange(5.0)], axis=1)
    bent = np.array([[0.0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])
    return {
        ("pca_explained", "all components together"): explained,
        ("pca_turn", "a straight path"): turning_angles(straight).max(),
        ("pca_turn", "a path with a right angle"): turning_angles(bent).max(),
    }


def _loss_by_log_tokens() -> Found:
    tokens = TOKENS[1:]
    derivative = derivative_by_log_tokens(tokens, 5 - 0.3 * np.log(tokens), np.geomspace(1e4, 1e6, 40))
    return {("loss_by_log_tokens", "a loss of 5 − 0.3 ln(tokens)"): derivative[3:-3].mean()}


def _uniform_attention(n_ctx: int) -> jnp.ndarray:
    return jnp.asarray((np.tri(n_ctx) / np.arange(1, n_ctx + 1)[:, None])[None, None], jnp.float32)


def _head_scores() -> Found:
    rows = {n: jnp.asarray(repeated_rows(1 + 2 * n, vocab_size=128, n_sequences=1, repeat_len=n, n_repeats=2))
            for n in (50, 100)}  # fmt: skip
    four = jnp.asarray(repeated_rows(n_sequences=1))
    stripe = float(np.diagonal(np.asarray(_uniform_attention(101)[0, 0]), offset=-49).mean())
    built, untrained = (of(head_scores.MEASUREMENT) for of in (_of_hand_built, _of_untrained))
    uniform = _uniform_attention(N_CTX)
    duplicates = np.tril(np.asarray(four)[0][:, None] == np.asarray(four)[0], k=-1)
    has_earlier = duplicates.any(axis=1)
    duplicate = float((np.asarray(uniform)[0, 0] * duplicates)[has_earlier].sum(axis=1).mean())
    return {
        ("prefix_matching", "uniform attention"): float(live.prefix_matching(uniform, four)[0]),
        ("prefix_matching", "uniform attention, 50 tokens twice"): float(
            live.prefix_matching(_uniform_attention(101), rows[50])[0]
        ),
        ("prefix_matching", "uniform attention, 100 tokens twice"): float(
            live.prefix_matching(_uniform_attention(201), rows[100])[0]
        ),
        ("duplicate_token", "uniform attention"): duplicate,
        ("induction_stripe", "uniform attention, 50 tokens twice"): stripe,
        ("previous_token", "uniform attention, T = 101"): float(live.previous_token(uniform)[0]),
        ("previous_token", "uniform attention, T = 512"): float(live.previous_token(_uniform_attention(512))[0]),
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
    own = _measured(smear.MEASUREMENT, _setting(model, np.zeros((1, 10), np.int32)), init_params(model, seed=0))
    found = {("smear_own", "untrained"): own["smear_own"].mean()}
    for alpha in (20, 0, -1, -3):
        params, config = smeared_induction_model(alpha)
        of = f"one hand-built smeared layer, α = {alpha}".replace("-", "−").replace("hand−built", "hand-built")
        found["prefix_matching", of] = float(head_scores.prefix_matching(params, repeated_rows(), config)[0, 0])
    return found


def _label_matching() -> Found:
    (scores,) = _of_hand_built(label_matching.MEASUREMENT)["label_matching"]
    return {("label_matching", f"hand-built, head {layer}.0"): scores[layer, 0] for layer in (0, 1)}


def _literal_copying() -> Found:
    params, setting = _hand_built()
    rng = np.random.default_rng(0)
    new = np.stack([np.concatenate([[0], rng.permutation(np.arange(1, V))[:50], np.ones(51)]) for _ in range(3)])
    found = _measured(literal_copying.MEASUREMENT, _setting(setting.config.model, new.astype(np.int32)), params)
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
    patterns = (jnp.asarray(right[:, None], jnp.float32), _uniform_attention(20))
    keys = jnp.asarray(same), jnp.asarray(labels)
    ideal, uniform = (float(pattern_matching(pattern, *keys)[0][0]) for pattern in patterns)
    return {
        ("pattern_matching", "all attention on the right labels"): ideal,
        ("pattern_matching", "uniform attention, less chance"): uniform - chance,
    }


def _labelled_tokens() -> Found:
    found = _of_uniform(labelled_tokens.MEASUREMENT)
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
    found = answers.MEASUREMENT.measure(setting, _zeros(setting))
    at = setting.label_names.index("glossary")
    return {("answer_prob_all", "uniform, V = 324, one token"): float(found["answer_prob_all"][0, at])}


def _answers_learned() -> Found:
    found = answers_learned.first_reached(np.array([100, 200]), np.array([[0.8], [1.0]]))
    return {("answer_tokens_all", "0.8 at 100 tokens and 1.0 at 200"): float(found[0])}


def _translation() -> Found:
    setting = _mixture()
    found = translation.MEASUREMENT.measure(setting, _zeros(setting))
    less = found["translation_attention"][0] - found["translation_chance"][0]
    return {("translation_attention", "uniform attention, less chance"): float(np.abs(less).max())}


def _same_heads() -> Found:
    score = np.array([[0.1, 0.5, 0.2]])
    return {
        ("same_heads_literal_translation", "two scores that order the heads alike"): same_heads.rank_correlation(
            score, score**2
        )
    }


def _zeros(setting: Context) -> dict[str, np.ndarray]:
    """A model whose attention and predictions are uniform, as one snapshot."""
    params = init_params(setting.config.model, 0)
    return {name: np.zeros((1, *value.shape), np.float32) for name, value in params.items()}


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
    kl = _measured(markov_strategies.MEASUREMENT, setting, params)["strategy_kl"][0]
    # Its fourth token is BOS, to which the strategy gives nothing.
    found["strategy_kl", "uniform model against uniform strategy, k = 3"] = kl - math.log(4 / 3)
    return found


def _memory_recall() -> Found:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(2, 8, 64, 16)) for name in ("W_Q", "W_K", "W_V")}
    weights |= {"W_O": rng.normal(size=(2, 8, 16, 64)), "W_E": rng.normal(size=(65, 64))}
    weights |= {"W_U": rng.normal(size=(64, 65))}
    params, setting = _hand_built()
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


def _copying() -> Found:
    params, setting = _hand_built()
    weights = circuits.fold_norms({name: np.asarray(value) for name, value in params.items()}, setting.config.model)
    circuit = circuits.ov_circuit(weights)
    eigenvalue = copying.copying_eigenvalue(circuit)
    tokens = jnp.asarray(repeated_rows()[:, :26])
    built = copying.copying_on_random_tokens(params, tokens, setting.config.model)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(400, 25, 25)), jnp.float32)
    random = copying.logit_copying(logits, jnp.broadcast_to(jnp.arange(25)[None], (400, 25)))
    found = {
        ("copying_eigenvalue", "hand-built, head 1.0"): eigenvalue[1, 0],
        ("copying_eigenvalue", "hand-built, head 0.0"): eigenvalue[0, 0],
        ("copying_logit", "random logits"): 2 * float(random.ratio.mean()) - 1,
        ("copying_logit_paper_range", "random logits"): float(random.paper_range.mean()),
        ("copying_logit", "hand-built, head 1.0"): float(built["source"][1, 0]),
        ("copying_logit_paper_range", "hand-built, head 1.0"): float(built["source_paper"][1, 0]),
        ("copying_top1", "hand-built, head 1.0, without BOS"): copying.copying_top1(circuit, np.arange(1, V))[1, 0],
    }
    for d_head, d_model in ((16, 64), (32, 128), (64, 256)):
        left = rng.normal(size=(150, d_head, d_model)) @ rng.normal(size=(150, d_model, d_model))
        scores = copying.copying_eigenvalue(copying.FactoredMatrix(left, rng.normal(size=(150, d_model, d_head))))
        found["copying_eigenvalue", f"random, standard deviation, d_head {d_head}"] = scores.std()
        if d_head == 16:
            found["copying_eigenvalue", "random, mean over 150 heads, d_head 16"] = scores.mean()
    return found


_WEIGHTS = ("W_E", "W_Q", "W_K", "W_V", "W_O")


def _qk_trace() -> Found:
    params, _ = _hand_built()
    previous = np.array([[1.0], [0.01]])
    eigenvalues = qk_trace.previous_token_eigenvalues(*(np.asarray(params[name]) for name in _WEIGHTS), previous)[1]
    of = "hand-built, head 1.0, p = 1"
    found = {
        ("qk_trace", of): eigenvalues.sum().real,
        ("qk_trace_ratio", of): float(qk_trace.eigenvalue_sum_ratio(eigenvalues)[0]),
    }
    rng = np.random.default_rng(0)
    for d_head, d_model in ((64, 256), (16, 64)):
        W_Q, W_K, W_V, W_O = (rng.normal(size=(2, 4, d_model, d_head)) for _ in range(4))
        W_E = rng.normal(size=(300, d_model))
        random = qk_trace.previous_token_eigenvalues(W_E, W_Q, W_K, W_V, W_O.mT, np.full((2, 4), 0.04))[1]
        found["qk_trace_ratio", f"random, largest size, d_head {d_head}"] = np.abs(
            qk_trace.eigenvalue_sum_ratio(random)
        ).max()
    return found


def _circuits() -> Found:
    norm = _of_hand_built(circuits.MEASUREMENT)["ov_norm"]
    return {("ov_norm", f"hand-built, head {layer}.0"): norm[layer, 0] for layer in (0, 1)}


def _composition() -> Found:
    params, _ = _hand_built()
    scores = composition.composition_scores(*(np.asarray(params[name]) for name in _WEIGHTS[1:]))
    found = {
        (f"{name}_composition", "hand-built, 0.0 to 1.0, without the baseline"): values[0, 0, 1, 0]
        for name, values in scores._asdict().items()
    }
    for d_model, d_head in ((64, 16), (128, 32), (768, 64)):
        of = f"D = {d_model}, d_head {d_head}"
        found["composition_baseline", of] = composition.random_baseline(d_model, d_head).mean
    return found


@functools.cache
def _frozen_hand_built() -> Arrays:
    """Mean gain of the hand-built model's paths on later copies."""
    params, setting = _hand_built()
    model, rows = setting.config.model, jnp.asarray(setting.held_out)
    run = frozen_run(params, rows[:, :-1], model)
    found = paths.expand_paths(params, run, model)
    parts = {"direct": found.direct[None], "heads": found.heads.reshape(2, *found.heads.shape[-3:])}
    gains = {
        name: paths.next_token_logit(params, run, value, rows[:, 1:], model)[..., LATER].mean(axis=(1, 2))
        for name, value in parts.items()
    }
    return {name: np.asarray(value) for name, value in gains.items()}


def _paths() -> Found:
    gains = _frozen_hand_built()
    return {
        ("path_residual", "untrained"): _of_untrained(paths.PATHS)["path_residual"],
        ("path_heads", "hand-built, head 1.0, later copies"): gains["heads"][1],
        ("path_direct", "hand-built"): gains["direct"][0],
    }


def _path_pairs() -> Found:
    return {
        ("path_virtual", "hand-built"): _of_hand_built(paths.PATH_PAIRS)["path_virtual"][0, 0],
        ("qk_term_residual", "untrained"): _of_untrained(paths.PATH_PAIRS)["qk_term_residual"],
    }


def _term_importance() -> Found:
    found = _of_hand_built(term_importance.MEASUREMENT)["term_loss"]
    later = (found[2] * N_CTX - 26 * math.log(V)) / (N_CTX - 26)
    return {
        ("term_loss", "hand-built, order 0"): found[0],
        ("term_loss", "hand-built, order 2, later copies"): later,
        ("term_residual", "untrained"): _of_untrained(term_importance.MEASUREMENT)["term_residual"],
    }


def _skip_trigrams() -> Found:
    found = {}
    params, model = smeared_induction_model(20.0, n_ctx=33, vocab_size=V)
    rows = repeated_rows(33, repeat_len=8)
    setting = _setting(model, np.concatenate([rows, rows[:, 1:2]], axis=1))
    for sign, of in ((1, "one layer that copies"), (-1, "one layer that never copies")):
        signed = {**params, "W_O": sign * np.asarray(params["W_O"])}
        (share,) = _measured(skip_trigrams.MEASUREMENT, setting, signed)["skip_trigram_copies"]
        found["skip_trigram_copies", of] = share
    return found


def _bigrams() -> Found:
    counts = np.random.default_rng(0).integers(1, 30, (V, V))
    rows = counts.sum(axis=1, keepdims=True)
    own = bigrams.bigram_fit(np.log(counts / rows), counts)
    smoothed = bigrams.bigram_fit(np.log((counts + 1 / V) / (rows + 1)), counts)
    uniform = bigrams.bigram_fit(np.full((V, V), -math.log(V)), counts)
    return {
        ("bigram_kl", "the corpus's own table"): smoothed.kl,
        ("bigram_loss_gap", "the corpus's own table, not smoothed"): own.loss_gap,
        ("bigram_pearson", "the corpus's own table, not smoothed"): own.pearson,
        ("bigram_loss_gap", "uniform, V = 64, plus the entropy"): uniform.loss_gap + uniform.entropy,
    }


def _seen_bigrams() -> Found:
    found = _of_hand_built(seen_bigrams.MEASUREMENT)
    losses = {name: found[name] for name in ("set_seen_bigram_loss", "set_new_bigram_loss")}
    return {
        ("seen_bigram_share", "hand-built"): found["seen_bigram_share"],
        **{(name, "hand-built, intact"): loss[0] for name, loss in losses.items()},
        **{(name, "hand-built, without head 1.0"): loss[1] for name, loss in losses.items()},
        ("set_copy_loss", "hand-built, intact, copy 4"): found["set_copy_loss"][0, 3],
        ("set_copy_loss", "hand-built, without head 1.0, copy 4"): found["set_copy_loss"][1, 3],
    }


def _ablation() -> Found:
    params, setting = _hand_built()
    measured = ablation.ablate(params, setting.held_out, setting.config.model)
    loss = {name: np.asarray(values) for name, values in measured.items()}
    found = {
        (f"{kind}_loss", f"hand-built, head {layer}.0, later copies, less intact"): float(
            (loss[kind][layer, 0] - loss["intact"])[:, LATER].mean()
        )
        for kind in ("full", "pattern_preserving")
        for layer in (0, 1)
    }
    untrained = ablation.ablate(init_params(UNTRAINED, seed=0), setting.held_out, UNTRAINED)
    difference = np.asarray(untrained["full"]).mean(axis=(2, 3)) - np.asarray(untrained["intact"]).mean()
    return found | {("full_loss", "untrained, less intact"): np.abs(difference).max()}


def _set_ablation() -> Found:
    effect = float(_growing()["set_icl_effect"][-1])
    return {("set_icl_effect", "a run whose head 1.0 grows, V = 24, at its end"): effect}


def _set_sizes() -> Found:
    last = _growing().isel(selected=-1).sel(set_share=0.2)
    of = "a run whose head 1.0 grows, V = 24, at its end, {}, 20 %"
    return {
        ("size_icl_effect", of.format(kind)): float(last["size_icl_effect"].sel(set_kind=kind))
        for kind in ("induction", "previous_token")
    }


@functools.cache
def _patched(is_trained: bool) -> Arrays:
    found: Arrays = {}
    for module in (activation_patching, path_patching, attribution_patching):
        found |= (_of_hand_built if is_trained else _of_untrained)(module.MEASUREMENT)
    return found


def _activation_patching() -> Found:
    found = _patched(True)
    largest = np.abs(_patched(False)["patched_head_effect"]).max()
    return {
        ("patched_all_effect", "hand-built"): float(found["patched_all_effect"]),
        ("patched_head_effect", "untrained, the largest"): largest,
    } | {
        ("patched_head_effect", f"hand-built, head {layer}.0"): found["patched_head_effect"][layer, 0]
        for layer in (0, 1)
    }


def _path_patching() -> Found:
    found = _patched(True)
    return {
        ("path_all_effect", "hand-built"): float(found["path_all_effect"]),
        ("k_layer_effect", "hand-built, layer 0 to 1"): found["k_layer_effect"][0, 1],
    } | {(f"{name}_path_effect", "hand-built, 0.0 to 1.0"): found[f"{name}_path_effect"][0, 0, 1, 0] for name in "qkv"}


def _attribution_patching() -> Found:
    found, untrained = _patched(True), _patched(False)
    largest = np.abs(untrained["head_attribution"] - untrained["patched_head_effect"]).max()
    return {
        ("k_path_attribution", "hand-built, 0.0 to 1.0"): found["k_path_attribution"][0, 0, 1, 0],
        ("head_attribution", "hand-built, head 1.0"): found["head_attribution"][1, 0],
        ("head_attribution", "untrained, the largest less patched_head_effect"): largest,
    }


def _patching_agreement() -> Found:
    exact = np.array([[0.1, np.nan], [0.3, -0.2]])
    dims = ("selected", "layer", "head")
    values = {"patched_head_effect": exact, "head_attribution": 0.5 * exact}
    values |= {f"{name}_path_effect": exact for name in "qkv"}
    values |= {f"{name}_path_attribution": 0.5 * exact for name in "qkv"}
    dataset = xr.Dataset({name: (dims, value[None]) for name, value in values.items()})
    found = patching_agreement.DERIVED.derive(_hand_built()[1], dataset)
    return {("path_agreement", "effects that are proportional"): float(found["path_agreement"][0])}


def _shuffled_context() -> Found:
    start = float(_growing()["shuffled_icl"][0])
    return {("shuffled_icl", "a run whose head 1.0 grows, at its start, uniform"): start}


def _ablation_effects() -> Found:
    at_end = _growing().sel(selected=int(_growing()["step_after"]))
    pairs = [("pattern_preserving", 1), ("pattern_preserving", 0), ("full", 0)]
    return {
        (f"{kind}_along_change", f"a run whose head 1.0 grows, head {layer}.0"): float(
            at_end[f"{kind}_along_change"][layer, 0]
        )
        for kind, layer in pairs
    }


COMPUTED: dict[str, Callable[[], Found]] = {
    name: globals()[f"_{name}"] for name in (measurement.name for measurement in TABLE)
}


def test_every_measurement_has_its_heading_and_no_other_is_there() -> None:
    assert sorted(_page()) == sorted(COMPUTED)


@pytest.mark.parametrize("name", COMPUTED)
def test_known_values_are_computed(name: str) -> None:
    text = _page()[name].partition("\n## ")[0]
    stated, found = _stated(text), COMPUTED[name]()
    assert stated.keys() == found.keys()
    assert len(stated) == text.count("\n|") - 2  # a row that is not understood is not passed over
    for key, (value, tolerance) in stated.items():
        assert found[key] == pytest.approx(value, abs=tolerance, rel=0), key


def test_what_the_page_calls_variables_are_variables() -> None:
    known = {name for measurement in TABLE for name in measurement.variables}
    for name, text in _page().items():
        assert {variable for variable, _ in _stated(text)} <= known, name
