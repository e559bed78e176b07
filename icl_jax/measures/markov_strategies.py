"""Which strategy the model follows on rows of the ``markov`` corpus, each a Markov chain of its own.

A strategy predicts the next state from the counts of what it has seen in the row, add-one smoothed. With k states, for
a context of the last c states (c = 0 to the chain's order n) that was followed by state j so often:

    p(j) = (count(context, j) + 1) / (count(context) + k)

Index 0 on the axis `strategy` is the uniform 1 / k, index 1 + c the strategy with c states of context: 1 the in-context
unigram, 2 the in-context bigram. With c = n it is what Bayes' rule gives for chains drawn from Dirichlet(1, …, 1), the
prior "dirichlet": no model can do better on average.

- strategy_loss: mean loss on the rows; the same at every snapshot. true_chain_loss: of the row's own transitions.
- strategy_kl: KL(strategy ‖ model), mean over rows, per position and in the mean; 0 for a model that does the same.
- markov_loss: the model's loss on the same tokens.
- match_attention: attention of query t to the keys s (0 < s <= t) whose n states before are the last n states at t,
  mean over queries with such a key, [0, 1]: what an induction head attends to; match_attention_chance if it is uniform.
  On the first 16,384 tokens' worth of rows.

Means are over all positions whose next state the chain draws (`_late`: the last 20 of them). Attention of heads to the
token before: `previous_token` of `head_scores`.
Source: Edelman et al. 2024 (arXiv:2402.11004), section 2 and the figures on KL divergence to the strategies.
Departures: longer contexts for chains of higher order; the first predicted state comes after BOS, see `data.markov`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from icl_jax.data.corpora.markov import MarkovOptions
from icl_jax.maths.activations import Activations
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.forward import forward

N_LATE = 20
_ATTENTION_TOKENS = 2**14
_ROWS_AT_A_TIME = 8


def strategies(
    states: Int[np.ndarray, "B T"], n_states: int, max_context: int
) -> Float[np.ndarray, "strategy B T states"]:
    """What each strategy says of the state after each of `states` (0 to n_states - 1), on nothing but those so far.

    float64, summing to 1 over the last axis; [0] is uniform, [1 + c] has c states of context, c = 0 to max_context.
    Where fewer than c states have been seen, it is uniform.
    """
    n_rows, n_ctx = states.shape
    found = np.full((max_context + 2, n_rows, n_ctx, n_states), 1 / n_states)
    row_B = np.arange(n_rows)
    for c in range(max_context + 1):
        counts = np.zeros((n_rows, n_states**c, n_states))
        context_BT = context_codes(states, n_states, c)
        for t in range(max(c - 1, 0), n_ctx):
            if t >= c:  # state t has now followed the c before it
                before_B = context_BT[:, t - 1] if c else np.zeros(n_rows, np.int64)
                counts[row_B, before_B, states[:, t]] += 1
            here = counts[row_B, context_BT[:, t]]
            found[1 + c, :, t] = (here + 1) / (here.sum(axis=1, keepdims=True) + n_states)
    return found


def context_codes(states: Int[np.ndarray, "B T"], n_states: int, length: int) -> Int[np.ndarray, "B T"]:
    """The last `length` states at each position as one number, the latest the last digit to the base n_states.

    Positions before the first state count as state 0.
    """
    code_BT = np.zeros(states.shape, np.int64)
    for back in range(min(length, states.shape[1])):
        code_BT[:, back:] += states[:, : states.shape[1] - back] * n_states**back
    return code_BT


def match_keys(tokens: Int[np.ndarray, "B T"], order: int) -> Bool[np.ndarray, "B T T"]:
    """[row, query, key]: whether the `order` tokens before the key are the last `order` tokens at the query.

    Tokens start with BOS (0), which is no state; the key may be the query itself.
    """
    n_ctx = tokens.shape[1]
    match = np.tri(n_ctx, dtype=bool) & np.ones((len(tokens), 1, 1), bool)
    match[:, :order] = match[:, :, : order + 1] = False  # not as many states before them
    for back in range(order):
        at_query, at_key = np.roll(tokens, back, axis=1), np.roll(tokens, back + 1, axis=1)
        match &= at_query[:, :, None] == at_key[:, None, :]
    return match


def look(at: Snapshot, match: jax.Array) -> dict[str, jax.Array]:
    """Log-probabilities of the states, [row, position, state], and match_attention on the first rows."""

    def log_prob(tokens: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(forward(at.params, tokens, at.config), axis=-1)[..., 1:]

    def mass(tokens: jax.Array, match: jax.Array) -> jax.Array:
        seen = Activations(at.params, tokens, at.config, ("pattern",)).of_layers("pattern")
        return jnp.stack([jnp.sum(jnp.where(match[:, None], p, 0.0), axis=(2, 3)) for p in seen], axis=1)

    tokens = at.rows["held_out"][:, :-1]
    mass_NH = jnp.sum(map_rows(mass, tokens[: len(match)], match, n_at_a_time=_ROWS_AT_A_TIME), axis=0)
    n_queries = jnp.sum(jnp.any(match, axis=-1), dtype=mass_NH.dtype)
    return {"log_prob": map_rows(log_prob, tokens), "match_attention": mass_NH / n_queries}


def _match(context: Context) -> Bool[np.ndarray, "B T T"]:
    n_rows = max(1, _ATTENTION_TOKENS // context.config.model.n_ctx)
    return match_keys(context.held_out[:n_rows, :-1], context.config.data.options_of(MarkovOptions).order)


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    order, n_states = context.config.data.options_of(MarkovOptions).order, context.config.model.vocab_size - 1
    rows, n_rows = context.held_out, len(context.held_out)
    found = seen["log_prob"]
    n_snapshots = len(found)
    log_prob = found[:, :, order:].astype(np.float64)
    states = rows[:, 1:].astype(np.int64) - 1
    # The last of the states is a target only.
    said = strategies(states[:, :-1], n_states, order)[:, :, order - 1 :]
    target_BT1 = states[:, order:, None]

    loss_CBT = -np.log(np.take_along_axis(said, target_BT1[None], axis=3)[..., 0])
    entropy_CT = -np.sum(said * np.log(said), axis=3).mean(axis=1)
    kl_SCT = np.stack([-np.einsum("cbtk,btk->ct", said, each) / n_rows - entropy_CT for each in log_prob])
    model_loss_SBT = -np.take_along_axis(log_prob, target_BT1[None], axis=3)[..., 0]

    n_match_BT = _match(context).sum(axis=2)
    chance = (n_match_BT / np.arange(1, n_match_BT.shape[1] + 1))[n_match_BT > 0].mean()
    by_position = np.full((*kl_SCT.shape[:2], context.config.model.n_ctx), np.nan)
    by_position[:, :, order:] = kl_SCT

    def same(value: np.ndarray | float) -> np.ndarray:
        return np.repeat(np.asarray(value)[None], n_snapshots, axis=0)

    true_BT = _true_chain_loss(context, states)
    return {
        "strategy_loss": same(loss_CBT.mean(axis=(1, 2))),
        "strategy_loss_late": same(loss_CBT[..., -N_LATE:].mean(axis=(1, 2))),
        "true_chain_loss": same(true_BT.mean()),
        "true_chain_loss_late": same(true_BT[:, -N_LATE:].mean()),
        "strategy_kl": kl_SCT.mean(axis=2),
        "strategy_kl_late": kl_SCT[..., -N_LATE:].mean(axis=2),
        "strategy_kl_by_position": by_position,
        "markov_loss": model_loss_SBT.mean(axis=(1, 2)),
        "markov_loss_late": model_loss_SBT[..., -N_LATE:].mean(axis=(1, 2)),
        "match_attention": seen["match_attention"],
        "match_attention_chance": same(chance),
    }


def _true_chain_loss(context: Context, states: Int[np.ndarray, "B T"]) -> Float[np.ndarray, "B drawn"]:
    """Loss of the rows' own transitions; NaN if the run directory does not hold them."""
    order, chains = context.config.data.options_of(MarkovOptions).order, context.chains
    if chains is None:
        return np.full((len(states), states.shape[1] - order), np.nan)
    before = context_codes(states, chains.shape[-1], order)[:, order - 1 : -1]
    return -np.log(chains[np.arange(len(states))[:, None], before, states[:, order:]])


def why_not(context: Context) -> str | None:
    if context.config.data.source != "markov":
        return f"the rows are no Markov chains; data.source = {context.config.data.source!r}"
    return needs_layers(context)


_NOT_KEPT = "the run was made before held_out.zarr kept the rows' transitions"
_EARLY = "the first states are not drawn from the chain"

MEASUREMENT = Measurement(
    name="markov_strategies",
    source="Edelman et al. 2024, KL divergence to strategies",
    variables={
        "strategy_loss": Variable(("strategy",), "nats", "mean loss: uniform, in-context unigram, bigram, …; > 0"),
        "strategy_loss_late": Variable(("strategy",), "nats", f"strategy_loss on the last {N_LATE} positions; > 0"),
        "true_chain_loss": Variable((), "nats", "mean loss of the rows' own transitions; > 0", _NOT_KEPT),
        "true_chain_loss_late": Variable(
            (), "nats", f"true_chain_loss on the last {N_LATE} positions; > 0", _NOT_KEPT
        ),
        "strategy_kl": Variable(("strategy",), "nats", "KL(strategy ‖ model), mean over positions; 0 or more"),
        "strategy_kl_late": Variable(("strategy",), "nats", f"strategy_kl on the last {N_LATE} positions; 0 or more"),
        "strategy_kl_by_position": Variable(
            ("strategy", "position"), "nats", "KL(strategy ‖ model), mean over rows; 0 or more", _EARLY
        ),
        "markov_loss": Variable((), "nats", "the model's mean loss on the states the chain draws; 0 or more"),
        "markov_loss_late": Variable((), "nats", f"markov_loss on the last {N_LATE} positions; 0 or more"),
        "match_attention": Variable(
            ("layer", "head"), "attention", "attention to what followed the query's states before; [0, 1]"
        ),
        "match_attention_chance": Variable((), "attention", "match_attention of uniform attention; [0, 1]"),
    },
    look=look,
    finish=finish,
    reads=lambda context: (_match(context),),
    why_not=why_not,
)  # fmt: skip
