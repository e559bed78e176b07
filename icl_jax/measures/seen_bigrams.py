"""What induction heads are worth on text: the loss of tokens whose bigram stood before in the row, and of all others.

A token's bigram is the token before it and the token itself. It was *seen* if the same two stood earlier in the row,
in this order: then an induction head can say the token (the class `induction_correct` of
`icl_jax.measures.token_classes`). The loss is taken of the intact model and with heads taken away together (results set
to zero, everything after them anew):

===========  ====================================================================================
intact       no head taken away
induction    the heads of highest prefix matching, an eighth of all heads, 10 at most
same_layers  as many others from each of their layers, drawn at random among those whose prefix matching is below
             `HEAD_THRESHOLD`, then among the rest; the mean loss over three draws
===========  ====================================================================================

The mean loss on text hardly tells induction heads from others, where the bigram was seen does. In SmolLM2-135M ten of
them are worth 0.67 nats on seen bigrams and 0.053 on others. On BOS and a block of random tokens four times the same
sets give the mean loss of each copy. Losses in nats, [0, inf). Source: ours; the ablation is Olsson et al. 2022's.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from icl_jax.maths.head_scores import HEAD_THRESHOLD
from icl_jax.measures import head_scores
from icl_jax.measures.ablation import ablate_sets, matched_sets
from icl_jax.measures.measurement import Context, Measurement, Variable
from icl_jax.measures.snapshot import Snapshot
from icl_jax.measures.token_classes import classify_tokens

HEAD_SETS = ("intact", "induction", "same_layers")
_MOST_HEADS = 10
_SHARE = 8
N_DRAWS = 3
_TOKENS = 2**12
_N_COPIES = 4


def n_in_set(n_layers: int, n_heads: int) -> int:
    """How many heads are taken away together: an eighth of all, 1 to 10."""
    return max(1, min(_MOST_HEADS, n_layers * n_heads // _SHARE))


def choose_sets(
    prefix_matching: Float[Array, "N H"], random: Float[Array, "draw N H"]
) -> tuple[Bool[Array, "N H"], Bool[Array, "draw N H"]]:
    """The heads of highest prefix matching, and for each draw as many others from each of their layers.

    random: numbers in [0, 1) that the draws go by. Fewer others where a layer has no more.
    """
    n_layers, n_heads = prefix_matching.shape
    _, highest = jax.lax.top_k(prefix_matching.reshape(-1), n_in_set(n_layers, n_heads))
    induction_NH = jnp.zeros(n_layers * n_heads, bool).at[highest].set(True).reshape(n_layers, n_heads)
    # Others that match prefixes too come after those that do not.
    last = jnp.where(induction_NH, 2.0, jnp.where(prefix_matching >= HEAD_THRESHOLD, 1.0, 0.0))
    return induction_NH, matched_sets(induction_NH, random + last[None])


def look(
    at: Snapshot, rows: jax.Array, is_seen_BT: jax.Array, repeated: jax.Array, random: jax.Array
) -> dict[str, jax.Array]:
    score = head_scores.prefix_matching(at.params, repeated, at.config)
    induction, others = choose_sets(score, random)
    sets = jnp.concatenate([jnp.zeros_like(induction)[None], induction[None], others])
    seen = is_seen_BT.astype(jnp.float32)[None]
    n_seen, n_new = jnp.sum(seen), seen.size - jnp.sum(seen)

    def of_sets(mean_K: jax.Array) -> jax.Array:
        drawn = jnp.where(jnp.any(others), jnp.mean(mean_K[2:], axis=0), jnp.nan)
        return jnp.stack([mean_K[0], mean_K[1], drawn])

    loss_KBT = ablate_sets(at.params, rows, at.config, sets)
    repeats_KBT = ablate_sets(at.params, repeated, at.config, sets)
    repeats_KC = jnp.mean(repeats_KBT.reshape(*repeats_KBT.shape[:2], _N_COPIES, -1), axis=(1, 3))
    return {
        "set_seen_bigram_loss": of_sets(jnp.sum(loss_KBT * seen, axis=(1, 2)) / n_seen),
        "set_new_bigram_loss": of_sets(jnp.sum(loss_KBT * (1 - seen), axis=(1, 2)) / n_new),
        "set_copy_loss": of_sets(repeats_KC),
        "seen_bigram_share": n_seen / seen.size,
        "in_induction_set": induction.astype(jnp.float32),
        "in_same_layers_set": jnp.mean(others.astype(jnp.float32), axis=0),
    }


def _reads(context: Context) -> tuple[np.ndarray, ...]:
    model = context.config.model
    rows = context.held_out[: max(8, _TOKENS // model.n_ctx)]
    random = np.random.default_rng([context.seed, 2]).random((N_DRAWS, model.n_layers, model.n_heads), np.float32)
    return rows, classify_tokens(rows) == 0, context.repeated, random


_SETS = ("ablated_set",)
_NO_SEEN = "no bigram of the rows stood before in its row"
_NO_OTHERS = "the layers of the induction heads have no other heads"

MEASUREMENT = Measurement(
    name="seen_bigrams",
    source="ours; Olsson et al. 2022, appendix Data collection (2), for the ablation",
    variables={
        "set_seen_bigram_loss": Variable(
            _SETS, "nats", "mean loss of tokens whose bigram stood before in the row, without the heads of a set; "
            "0 or more", f"{_NO_SEEN}; {_NO_OTHERS}",
        ),
        "set_new_bigram_loss": Variable(
            _SETS, "nats", "mean loss of all other tokens, without the heads of a set; 0 or more", _NO_OTHERS
        ),
        "set_copy_loss": Variable(
            ("ablated_set", "copy"), "nats", "mean loss of each copy of a block of random tokens, without the heads of "
            "a set; 0 or more", _NO_OTHERS,
        ),
        "seen_bigram_share": Variable((), "1", "share of tokens whose bigram stood before in the row; [0, 1]"),
        "in_induction_set": Variable(("layer", "head"), "1", "1 for the heads of the set induction, else 0"),
        "in_same_layers_set": Variable(
            ("layer", "head"), "1", "share of draws of the set same_layers that a head is in; [0, 1]"
        ),
    },
    look=look,
    reads=_reads,
    why_not=head_scores.why_not,
    on_few=True,
)  # fmt: skip
