"""Known values of docs/measures.md: copying, composition and the paths through the weights."""

import functools
import math

import jax.numpy as jnp
import numpy as np

from icl_jax.maths.frozen_run import frozen_run
from icl_jax.measures import (
    bigrams,
    circuits,
    composition,
    copying,
    paths,
    qk_trace,
    skip_trigrams,
    term_importance,
)
from tests.hand_built import repeated_rows, smeared_induction_model
from tests.known_values.model import (
    LATER,
    N_CTX,
    WEIGHTS,
    Arrays,
    Found,
    V,
    hand_built,
    measured,
    of_hand_built,
    of_untrained,
    setting_of,
)


def _copying() -> Found:
    params, setting = hand_built()
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


def _qk_trace() -> Found:
    params, _ = hand_built()
    previous = np.array([[1.0], [0.01]])
    eigenvalues = qk_trace.previous_token_eigenvalues(*(np.asarray(params[name]) for name in WEIGHTS), previous)[1]
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
    norm = of_hand_built(circuits.MEASUREMENT)["ov_norm"]
    return {("ov_norm", f"hand-built, head {layer}.0"): norm[layer, 0] for layer in (0, 1)}


def _composition() -> Found:
    params, _ = hand_built()
    scores = composition.composition_scores(*(np.asarray(params[name]) for name in WEIGHTS[1:]))
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
    params, setting = hand_built()
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
        ("path_residual", "untrained"): of_untrained(paths.PATHS)["path_residual"],
        ("path_heads", "hand-built, head 1.0, later copies"): gains["heads"][1],
        ("path_direct", "hand-built"): gains["direct"][0],
    }


def _path_pairs() -> Found:
    return {
        ("path_virtual", "hand-built"): of_hand_built(paths.PATH_PAIRS)["path_virtual"][0, 0],
        ("qk_term_residual", "untrained"): of_untrained(paths.PATH_PAIRS)["qk_term_residual"],
    }


def _term_importance() -> Found:
    found = of_hand_built(term_importance.MEASUREMENT)["term_loss"]
    later = (found[2] * N_CTX - 26 * math.log(V)) / (N_CTX - 26)
    return {
        ("term_loss", "hand-built, order 0"): found[0],
        ("term_loss", "hand-built, order 2, later copies"): later,
        ("term_residual", "untrained"): of_untrained(term_importance.MEASUREMENT)["term_residual"],
    }


def _skip_trigrams() -> Found:
    found = {}
    params, model = smeared_induction_model(20.0, n_ctx=33, vocab_size=V)
    rows = repeated_rows(33, repeat_len=8)
    setting = setting_of(model, np.concatenate([rows, rows[:, 1:2]], axis=1))
    for sign, of in ((1, "one layer that copies"), (-1, "one layer that never copies")):
        signed = {**params, "W_O": sign * np.asarray(params["W_O"])}
        (share,) = measured(skip_trigrams.MEASUREMENT, setting, signed)["skip_trigram_copies"]
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
