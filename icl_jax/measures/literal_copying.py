"""Literal copying: half of a held-out row said again, word for word.

On BOS, the row's first half and the same half once more, with q a position of the second copy whose next token is known
from the first, and k the position of that token there:

- literal_copying_attention: A[q, k], mean over q; [0, 1]. Only the one key counts, though natural text has others that
  follow the same token: this is not prefix matching, which takes random tokens and every earlier match.
- literal_copying_logit: what the head adds to the true next token's logit, by direct attribution, mean over q.
- literal_copying_share: that, over the whole logit (less the vocabulary's mean), so that heads, embedding and MLPs sum
  to 1; NaN where the mean logit is not above 0, as in an untrained model. It tells little where it is just above.
- literal_copying_gain: loss of these tokens in the second copy less that of the same tokens in the first, nats;
  negative: said again they are known better.

Up to 10 rows, cut at 512 tokens. Source: Olsson et al. 2022, Argument 4, "Behavior 1: Literal copying" (attention and
direct-path logit attribution, shown for one text). Departure: averages over held-out rows of the run's own corpus.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import Activations, AnyParams
from icl_jax.maths.logit_attribution import attribution
from icl_jax.measures.measurement import Context, Measurement, Variable, needs_layers
from icl_jax.measures.snapshot import Snapshot
from icl_jax.model.tokens import takes_predicted_tokens

_SHORTEST = 5  # BOS and two tokens twice: the second is predicted from the first


def said_twice(rows: Int[np.ndarray, "B T"]) -> Int[np.ndarray, "B R"]:
    """BOS, the first half of what follows it, and that half again."""
    half = (rows.shape[1] - 1) // 2
    return np.concatenate([rows[:, : 1 + half], rows[:, 1 : 1 + half]], axis=1)


@takes_predicted_tokens
def literal_copying(
    params: AnyParams, tokens: Int[Array, "B R"], config: ModelConfig
) -> dict[str, Float[Array, "N H"] | Float[Array, ""]]:
    """The four measures on rows of `said_twice`, under the last word of their names."""
    half = (tokens.shape[1] - 1) // 2
    first, second = np.arange(1, half), np.arange(1 + half, 2 * half)
    seen = Activations(params, tokens[:, :-1], config)
    terms = attribution(seen, jnp.asarray(tokens)[:, 1:])
    heads = jnp.mean(terms.heads[:, second], axis=(0, 1))
    logit = jnp.mean(terms.logit[:, second])
    return {
        "attention": seen.each_layer(
            ("pattern",), lambda layer, _params: jnp.mean(layer["pattern"][..., second, first + 1], axis=(0, 2))
        ),
        "logit": heads,
        "share": jnp.where(logit > 0, heads / logit, jnp.nan),
        "gain": jnp.mean(terms.loss_nats[:, second] - terms.loss_nats[:, first]),
    }


def look(at: Snapshot, tokens: jax.Array) -> dict[str, jax.Array]:
    found = literal_copying(at.params, tokens, at.config)
    return {f"literal_copying_{name}": value for name, value in found.items()}


def why_not(context: Context) -> str | None:
    n_ctx = context.config.model.n_ctx
    return needs_layers(context) or (
        f"n_ctx = {n_ctx}: too short for BOS and two tokens twice" if n_ctx < _SHORTEST else None
    )


_HEAD = ("layer", "head")

MEASUREMENT = Measurement(
    name="literal_copying",
    source="Olsson et al. 2022, Argument 4, Literal copying",
    variables={
        "literal_copying_attention": Variable(
            _HEAD, "attention", "to the next token's earlier copy, in half a held-out row said again; [0, 1]"
        ),
        "literal_copying_logit": Variable(
            _HEAD, "1", "what the head adds there to the true next token's logit (direct attribution)"
        ),
        "literal_copying_share": Variable(
            _HEAD, "1", "the same as a share of that logit less the vocabulary's mean; all terms sum to 1",
            missing="the mean logit of the true token is not above 0",
        ),
        "literal_copying_gain": Variable(
            (), "nats", "loss in the second copy less loss in the first; negative: said again it is known better"
        ),
    },
    look=look,
    reads=lambda context: (said_twice(context.natural),),
    why_not=why_not,
)  # fmt: skip
