"""How much the paths of each order matter: a path of order n goes through n attention heads.

Patterns and norm scales of the run are held fixed. Run 0 unembeds the embedding alone (the direct path). In run n every
head's values read the residual stream as it was in run n - 1, so that the output holds the paths of order n and less.
L_n is its loss; order n matters by L_(n-1) - L_n. L_N of a model of N layers is its loss. The direct path's loss is to
be held against that of uniform predictions, ln V.

Order 1 is split by layer both ways: what a layer's heads gain when added to the direct path alone, and what they lose
when taken from all paths of order 1 and less.
Source: Elhage et al. 2021, "Term importance analysis". Departure: norm scales are those of run 1, so that terms add up.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.frozen_run import frozen_run, head_outputs, to_logits
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable, attention_only
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.params import Params
from icl_jax.model.tokens import takes_rows

# About so many tokens: each run unembeds them all.
_N_TOKENS = 4096


class TermImportance(NamedTuple):
    """Losses in nats, means over all tokens."""

    order: Float[Array, " N1"]
    """L_0 to L_N."""
    added: Float[Array, " N"]
    """L_0 less the loss of direct path and one layer's heads of order 1."""
    removed: Float[Array, " N"]
    """Loss of all paths of order 1 and less but one layer's, less L_1."""
    full: Float[Array, ""]
    """The model's own loss."""


@takes_rows
def term_importance(params: Params, rows: Int[Array, "B T1"], config: ModelConfig) -> TermImportance:
    """Of an attention-only model of one or more layers, on rows of tokens. The caller sees to it that it is one."""
    tokens, targets = rows[:, :-1], rows[:, 1:]
    run = frozen_run(params, tokens, config)
    n_layers = config.n_layers

    def loss(x_BTD: Array) -> Array:
        return _mean_loss(to_logits(params, run, x_BTD, config), targets)

    # reads[l]: the residual stream that layer l's values read; of order 0, the embedding.
    reads = [run.embed] * n_layers
    losses, first_order = [loss(run.embed)], []
    for order in range(1, n_layers + 1):
        writes = [jnp.sum(head_outputs(params, run, layer, x, config), axis=0) for layer, x in enumerate(reads)]
        if order == 1:
            first_order = writes
        reads = [run.embed]
        for write in writes:
            reads.append(reads[-1] + write)
        losses.append(loss(reads.pop()))
    up_to_first = sum(first_order, run.embed)
    return TermImportance(
        order=jnp.stack(losses),
        added=losses[0] - jnp.stack([loss(run.embed + write) for write in first_order]),
        removed=jnp.stack([loss(up_to_first - write) for write in first_order]) - losses[1],
        full=_mean_loss(run.logits, targets),
    )


def _mean_loss(logits: Float[Array, "B T V"], targets: Int[Array, "B T"]) -> Float[Array, ""]:
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - target_logit)


def look(at: Snapshot) -> dict[str, Array]:
    rows = at.rows["held_out"][: max(4, _N_TOKENS // at.config.n_ctx)]
    # A row at a time: [B, T, V] logits of several runs are more than a laptop likes.
    one_by_one = jax.lax.map(lambda row: term_importance(at.params, row[None], at.config), rows)
    return {f"term_{name}": jnp.mean(values, axis=0) for name, values in one_by_one._asdict().items()}


def finish(_context: Context, _params: StackedParams, found: Arrays) -> Arrays:
    return {
        "term_loss": found["term_order"],
        "term_added": found["term_added"],
        "term_removed": found["term_removed"],
        "term_residual": np.abs(found["term_order"][:, -1] - found["term_full"]),
    }


MEASUREMENT = Measurement(
    name="term_importance",
    source="Elhage et al. 2021, Term importance analysis",
    variables={
        "term_loss": Variable(
            ("order",), "nats", "loss with the paths through up to `order` heads, norm scales of the run"
        ),
        "term_added": Variable(
            ("layer",), "nats", "loss that a layer's paths of order 1 take from the direct path's alone"
        ),
        "term_removed": Variable(("layer",), "nats", "loss that leaving them out of all paths of order <= 1 adds"),
        "term_residual": Variable(
            (), "nats", "difference between term_loss of the highest order and the loss: rounding"
        ),
    },
    look=look,
    finish=finish,
    why_not=attention_only,
)
