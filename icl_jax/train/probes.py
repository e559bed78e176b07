"""The live measures, taken from parameters during training on their own schedule."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.config import Config
from icl_jax.data import Corpus
from icl_jax.model.forward import final_resid, forward, unembedding_DV
from icl_jax.model.head_scores import prefix_matching, previous_token, repeated_tokens
from icl_jax.model.icl_score import icl_score, icl_windowed
from icl_jax.model.loss import token_loss
from icl_jax.model.params import Params
from icl_jax.rundir.record import ProbeResult

# They bound the probes' memory: rows and tokens at a time on the held-out set, positions of the previous-token score.
_ROWS_AT_A_TIME = 32
_TOKENS_AT_A_TIME = 65536
_MAX_PATTERN_CTX = 512

ProbeFn = Callable[[int, Params], ProbeResult]


def _held_out_loss(params: Params, rows: jax.Array, config: Config) -> jax.Array:
    """Mean loss at each position, nats."""

    def batch_loss(rows: jax.Array) -> jax.Array:
        x_BTD = final_resid(params, rows[:, :-1], config.model)
        W_U = unembedding_DV(params).astype(x_BTD.dtype)
        return jnp.sum(token_loss(x_BTD, W_U, rows[:, 1:], config.model.loss_chunk), axis=0)

    n_rows = rows.shape[0]
    at_most = min(n_rows, _ROWS_AT_A_TIME, max(1, _TOKENS_AT_A_TIME // config.model.n_ctx))
    at_a_time = max(n for n in range(1, at_most + 1) if n_rows % n == 0)
    return jnp.sum(jax.lax.map(batch_loss, rows.reshape(-1, at_a_time, rows.shape[1])), axis=0) / n_rows


def _head_scores(
    params: Params, repeated: jax.Array, natural: jax.Array, config: Config
) -> tuple[jax.Array, jax.Array]:
    """Prefix matching on repeated random tokens and previous-token score on held-out rows, [layer, head] each."""
    matching: list[jax.Array] = []
    previous: list[jax.Array] = []

    def see_matching(name: str, _layer: int, value: jax.Array) -> jax.Array:
        if name == "pattern":
            matching.append(prefix_matching(value, repeated))
        return value

    def see_previous(name: str, _layer: int, value: jax.Array) -> jax.Array:
        if name == "pattern":
            previous.append(previous_token(value))
        return value

    forward(params, repeated, config.model, tap=see_matching)
    forward(params, natural, config.model, tap=see_previous)
    return jnp.stack(matching), jnp.stack(previous)


def make_probe_fn(config: Config, corpus: Corpus) -> ProbeFn:
    """A function of (step, parameters on one device); compiled at its first call."""
    held_out = corpus.held_out(config.probes.held_out_rows)
    natural = held_out[: config.probes.n_sequences, : min(config.model.n_ctx, _MAX_PATTERN_CTX)]
    repeated = repeated_tokens(
        corpus.probe_tokens(),
        corpus.bos_id,
        config.model.n_ctx,
        n_sequences=config.probes.n_sequences,
        repeat_len=config.probes.repeat_len,
        n_repeats=config.probes.n_repeats,
        seed=config.data.seed,
    )

    @jax.jit
    def measure(params: Params, held_out: jax.Array, repeated: jax.Array, natural: jax.Array) -> tuple[jax.Array, ...]:
        loss_T = _held_out_loss(params, held_out, config)
        if config.model.n_layers == 0:
            return loss_T, jnp.zeros((0, config.model.n_heads)), jnp.zeros((0, config.model.n_heads))
        return loss_T, *_head_scores(params, repeated, natural, config)

    def probe(step: int, params: Params) -> ProbeResult:
        loss_T, matching_NH, previous_NH = jax.device_get(measure(params, held_out, repeated, natural))
        return ProbeResult(
            step=step,
            icl_score=icl_score(loss_T),
            icl_windowed=icl_windowed(loss_T),
            held_out_loss=np.asarray(loss_T),
            prefix_matching=np.asarray(matching_NH),
            previous_token=np.asarray(previous_NH),
        )

    return probe
