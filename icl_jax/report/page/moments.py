"""What the slider over training moves: loss by position, head scores and attention patterns at the same moment."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import ModelConfig
from icl_jax.maths.head_scores import repeated_tokens
from icl_jax.model.forward import run_with_cache
from icl_jax.report.figures.figure import log_positions
from icl_jax.report.page.arrays import ArrayStore
from icl_jax.report.page.token_text import TokenText
from icl_jax.report.reported_run import ReportedRun

_N_MOMENTS = 20
_MAX_TOKENS = 48
_MAX_HEADS = 16
_N_REPEATS = 4
_SCORES = ("prefix_matching", "previous_token")


def moments(run: ReportedRun, store: ArrayStore, text: TokenText) -> dict[str, Any]:
    """Everything that the slider moves of one run, for the page."""
    found: dict[str, Any] = {"tokens": store.put(run.tokens)}
    if run.has("loss_by_position"):
        loss = run.data["loss_by_position"].values
        positions = log_positions(loss.shape[1])
        found |= {"positions": store.put(positions + 1), "loss": store.put(loss[:, positions])}
    scores = {name: store.put(run.data[name].values) for name in _SCORES if run.has(name)}
    if scores:
        found["scores"] = scores
    if run.config.model.n_layers:
        found["patterns"] = _patterns(run, store, text)
    return found


def moment_indexes(n_snapshots: int, ends: tuple[int, int] | None) -> np.ndarray:
    """About 20 snapshots, evenly spaced, with both ends of the run and of the phase change among them."""
    even = np.linspace(0, n_snapshots - 1, min(_N_MOMENTS, n_snapshots)).round().astype(int)
    return np.unique(np.concatenate([even, np.array(ends or (), int)]))


def shown_heads(run: ReportedRun) -> list[tuple[int, int]]:
    """The heads whose patterns are kept: all, or the 16 with the highest score of either kind at the end."""
    heads = list(run.heads)
    if len(heads) <= _MAX_HEADS:
        return heads
    best = np.max([run.last(name) for name in _SCORES if run.has(name)] or [np.zeros((1, 1))], axis=0)
    return sorted(sorted(heads, key=lambda head: -best[head])[:_MAX_HEADS])


def example_sequences(run: ReportedRun) -> dict[str, np.ndarray]:
    """A random block said four times, and the start of a held-out row; int32, at most 48 tokens each."""
    held_out, n_ctx = run.run.load_held_out(), min(_MAX_TOKENS, run.config.model.n_ctx)
    repeated = repeated_tokens(
        held_out.candidates, held_out.bos_id, n_ctx, n_sequences=1, repeat_len=(n_ctx - 1) // _N_REPEATS,
        n_repeats=_N_REPEATS, seed=run.config.data.seed,
    )[0]  # fmt: skip
    return {"random tokens, repeated": repeated, "held-out row": held_out.rows[0, :n_ctx]}


def patterns_of(run: ReportedRun, steps: list[int], sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Attention of every head on each sequence of tokens, float32 [step, layer, head, query, key]."""
    found: list[list[np.ndarray]] = [[] for _ in sequences]
    for step in steps:
        params = {name: jnp.asarray(value) for name, value in run.run.load_params(step).items()}
        for patterns, tokens in zip(found, sequences, strict=True):
            patterns.append(np.asarray(_patterns_NHQK(params, jnp.asarray(tokens[None]), run.config.model)))
    return [np.stack(patterns) for patterns in found]


@partial(jax.jit, static_argnums=2)  # of this module: compiled once for all runs of a model
def _patterns_NHQK(params: dict[str, jax.Array], tokens_BT: jax.Array, model: ModelConfig) -> jax.Array:
    _, cache = run_with_cache(params, tokens_BT, model, names=("pattern",))
    return jnp.stack([cache["pattern", layer][0] for layer in range(model.n_layers)])


def _patterns(run: ReportedRun, store: ArrayStore, text: TokenText) -> dict[str, Any]:
    steps = list(run.data["snapshot"].values)
    ends = None if run.window is None else (steps.index(run.window[0]), steps.index(run.window[1]))
    at = moment_indexes(len(steps), ends)
    heads = shown_heads(run)
    layers, numbers = zip(*heads, strict=True)
    sequences = example_sequences(run)
    shown = []
    found = patterns_of(run, [int(steps[i]) for i in at], list(sequences.values()))
    for (name, tokens), patterns in zip(sequences.items(), found, strict=True):
        rows, columns = np.tril_indices(len(tokens))
        kept = patterns[:, list(layers), list(numbers)][:, :, rows, columns]
        packed = np.round(255 * np.clip(kept, 0, 1)).astype(np.uint8)
        shown.append({"name": name, "texts": text.of(tokens), "pattern": store.put(packed)})
    return {"at": [int(i) for i in at], "heads": [list(head) for head in heads], "sequences": shown}
