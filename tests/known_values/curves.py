"""Known values of docs/measures.md: losses, ICL scores and their changes."""

import dataclasses
import math

import numpy as np
import xarray as xr

from icl_jax.config import load_config
from icl_jax.config.builtin import builtin_config_path
from icl_jax.data.corpora.stories import StoriesCorpus
from icl_jax.maths.finding import find_changes
from icl_jax.maths.icl_score import icl_score, icl_windowed
from icl_jax.measures import (
    held_out_loss,
    icl_floor,
)
from icl_jax.measures.bump import bump
from icl_jax.measures.loss_by_log_tokens import derivative_by_log_tokens
from icl_jax.measures.loss_derivative import derivative_by_log_index
from icl_jax.measures.pca import pca, turning_angles
from icl_jax.measures.steepest_fall import window_in_tokens
from tests.known_values.model import (
    LATER,
    N_CTX,
    Found,
    V,
    growing,
    hand_built,
    hand_built_loss,
    of_uniform,
)


def _held_out_loss() -> Found:
    return {
        ("loss_by_position", "uniform, V = 64"): of_uniform(held_out_loss.MEASUREMENT)["loss_by_position"].mean(),
        ("loss_by_position", "hand-built, first copy"): hand_built_loss()[:26].mean(),
        ("loss_by_position", "hand-built, later copies"): hand_built_loss()[LATER].mean(),
    }


def _icl_floor() -> Found:
    config = load_config(builtin_config_path("stories-2l"))
    rows = StoriesCorpus(config).held_out(1024)
    context = dataclasses.replace(hand_built()[1], config=config, held_out=rows)
    by_row = np.zeros((1, 1024))
    found = icl_floor.derive(context, xr.Dataset({"row_icl": (("snapshot", "row"), by_row)}))
    return {
        ("floor_icl", "stories, 1,024 held-out rows"): float(found["floor_icl"]),
        ("floor_icl_sem", "stories, 1,024 held-out rows"): float(found["floor_icl_sem"]),
        ("icl_over_floor", "uniform, stories"): float(found["icl_over_floor"][0]),
    }


def _icl() -> Found:
    loss = hand_built_loss()
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
    return {(name, "a run whose head 1.0 grows, V = 24"): float(growing()[name]) for name in names}


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
