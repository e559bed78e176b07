"""What the weights of a model of the ``triggers`` corpus remember: probes of its associative memories.

Each probe asks for a token or a position by one matrix alone and takes the largest answer; shares of right answers,
[0, 1]. Layers and heads count from 0; the paper's W_O^2, W_K^1 and W_K^2 belong to layers 1, 0 and 1. Norm weights are
folded in; norms' scales and everything else in the residual stream are left out.

- output_recall, R(W_O^2): of all characters v, those for which W_OV of the head raises the logit of v most where it
  attends to v: the head copies. Chance 1/64.
- previous_recall, R(W_K^1): of all positions t >= 1, those whose position embedding, as query, prefers that of t - 1 to
  those of 0 to t as key: a previous-token head. `_early`: of the first 64 only.
- trigger_recall, R(W_K^2): of the characters v that can be triggers, those whose embedding, as query, prefers what the
  earlier head writes where it attends to v, as key, to what it writes for other triggers: the head looks for tokens
  that come after v. Chance 1 / n_triggers with fixed triggers, 1/64 with random ones (all characters).

Two things that the model does on held-out rows (the first 8,192 tokens' worth), with its whole residual stream:

- argmax_previous: share of queries (after the first) at which the head attends most to the token before.
- argmax_match: of the queries at a trigger that the row had before, the share at which the head attends most to a token
  that comes after the same trigger.

Accuracy in context is `label_top1` of `labelled_tokens`, label `output_again`.
Source: Bietti et al. 2023 (arXiv:2306.00802), section 4, memory recall probes. Departures: queries and keys both have
trained matrices here; keys are limited to positions that the query sees; the paper's model has a head per layer, ours
is probed head by head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.data.corpora.character_bigrams import N_CHARACTERS
from icl_jax.data.corpora.triggers import TriggersOptions
from icl_jax.maths.activations import patterns
from icl_jax.measures.circuits import Weights, fold_norms, ov_circuit, position_circuit, seen_embedding
from icl_jax.measures.markov_strategies import match_keys
from icl_jax.measures.measurement import (
    Arrays,
    Context,
    Measurement,
    StackedParams,
    Variable,
    needs_layers,
    needs_plain_keys,
)
from icl_jax.measures.snapshot import Snapshot

N_EARLY = 64
_ATTENTION_TOKENS = 2**13
_OUTPUT_AGAIN = 2


def output_recall(weights: Weights) -> Float[np.ndarray, "*S N H"]:
    """R(W_O^2) of every head over the ids 1 to 64; weights of `fold_norms`, W_E as the first layer reads it."""
    answer = ov_circuit(weights).AB[..., 1:, :].argmax(axis=-1)
    return np.mean(answer == np.arange(1, 1 + answer.shape[-1]), axis=-1)


def previous_recall(
    params: StackedParams, config: ModelConfig, n_positions: int | None = None
) -> Float[np.ndarray, "*S N H"]:
    """R(W_K^1) of every head over positions 1 to n_positions - 1 (default: all). ValueError if they have no vectors."""
    scores = position_circuit(params, config)
    answer = np.where(np.tri(config.n_ctx, dtype=bool), scores, -np.inf).argmax(axis=-1)[..., 1:n_positions]
    return np.mean(answer == np.arange(answer.shape[-1]), axis=-1)


def trigger_recall(weights: Weights, triggers: Int[np.ndarray, " triggers"]) -> Float[np.ndarray, "*S N H N H"]:
    """R(W_K^2), [..., earlier layer, its head, later layer, its head]; NaN where the layer is not later."""
    W_E = weights["W_E"][..., None, None, triggers, :]
    written = W_E @ weights["W_V"] @ weights["W_O"]
    asked = W_E @ weights["W_Q"] @ weights["W_K"].mT
    n_layers, n_heads = written.shape[-4:-2]
    found = np.full((*written.shape[:-4], n_layers, n_heads, n_layers, n_heads), np.nan)
    for src in range(n_layers):
        for dst in range(src + 1, n_layers):
            scores = asked[..., dst, None, :, :, :] @ written[..., src, :, None, :, :].mT  # [..., src, dst, v, v']
            answer = scores.argmax(axis=-1)
            found[..., src, :, dst, :] = np.mean(answer == np.arange(len(triggers)), axis=-1)
    return found


def look(at: Snapshot, match: jax.Array, is_asked: jax.Array) -> dict[str, jax.Array]:
    tokens = at.rows["held_out"][: len(match), :-1]
    key_NBHQ = jnp.argmax(patterns(at.params, tokens, at.config), axis=-1)
    is_previous = key_NBHQ[..., 1:] == jnp.arange(tokens.shape[1] - 1)[None, None, None]
    is_match = jnp.take_along_axis(match[None, :, None], key_NBHQ[..., None], axis=-1)[..., 0] & is_asked[None, :, None]
    return {
        "argmax_previous": jnp.mean(is_previous, axis=(1, 3), dtype=jnp.float32),
        "argmax_match": jnp.sum(is_match, axis=(1, 3)) / jnp.sum(is_asked),
    }


def _asked(context: Context) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """Rows, and their triggers that have stood there before."""
    assert context.labels is not None
    n_rows = max(1, _ATTENTION_TOKENS // context.config.model.n_ctx)
    return context.held_out[:n_rows, :-1], context.labels[:n_rows, 1:] == _OUTPUT_AGAIN


def _reads(context: Context) -> tuple[np.ndarray, ...]:
    rows, is_asked = _asked(context)
    return match_keys(rows, 1), is_asked


def finish(context: Context, params: StackedParams, seen_of: Arrays) -> Arrays:
    config, options = context.config.model, context.config.data.options_of(TriggersOptions)
    weights = fold_norms(params, config)
    seen = {**weights, "W_E": seen_embedding(weights, config)}
    seen["W_E"] = seen["W_E"][..., : 1 + N_CHARACTERS, :]
    n_triggers = options.n_triggers if options.choice == "fixed" else N_CHARACTERS
    found = {
        "output_recall": output_recall(seen),
        "trigger_recall": trigger_recall(seen, np.arange(1, 1 + n_triggers)),
        **seen_of,
    }
    if not config.has_position_embedding:
        none = np.full_like(found["output_recall"], np.nan)
        return found | {"previous_recall": none, "previous_recall_early": none}
    # One snapshot at a time: T by T for every head.
    each = [{name: value[s] for name, value in params.items()} for s in range(len(found["output_recall"]))]
    return found | {
        "previous_recall": np.stack([previous_recall(one, config) for one in each]),
        "previous_recall_early": np.stack([previous_recall(one, config, N_EARLY) for one in each]),
    }


def why_not(context: Context) -> str | None:
    if context.config.data.source != "triggers":
        return f"the rows have no triggers; data.source = {context.config.data.source!r}"
    if not _asked(context)[1].any():
        return f"n_ctx = {context.config.model.n_ctx}: too short for a trigger to come again"
    return needs_layers(context) or needs_plain_keys(context)


_HEAD = ("layer", "head")
_NO_POSITIONS = "rotary and ALiBi positions have no embedding"

MEASUREMENT = Measurement(
    name="memory_recall",
    source="Bietti et al. 2023, memory recall probes",
    variables={
        "output_recall": Variable(_HEAD, "1", "R(W_O^2): characters that W_OV maps to themselves; [0, 1]"),
        "previous_recall": Variable(
            _HEAD, "1", "R(W_K^1): positions whose embedding prefers the one before; [0, 1]", _NO_POSITIONS
        ),
        "previous_recall_early": Variable(
            _HEAD, "1", f"previous_recall over the first {N_EARLY} positions; [0, 1]", _NO_POSITIONS
        ),
        "trigger_recall": Variable(
            ("layer_src", "head_src", "layer_dst", "head_dst"), "1",
            "R(W_K^2): triggers that head_dst finds in what head_src writes of them; [0, 1]",
            "only a head in a later layer reads what another wrote",
        ),
        "argmax_previous": Variable(_HEAD, "1", "share of queries that attend most to the token before; [0, 1]"),
        "argmax_match": Variable(
            _HEAD, "1", "share of triggers seen before that attend most to what came after the same; [0, 1]"
        ),
    },
    look=look,
    finish=finish,
    reads=_reads,
    why_not=why_not,
)  # fmt: skip
