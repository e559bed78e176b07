"""What the heads that copy a new name are worth to each behaviour, against as many others of the same layers.

The set: the eighth of all heads, one at least, whose attention to what followed the same token before is highest at the
tokens of `novel_name` (`label_matching`): induction heads by what the corpus asks of them, for its rows need not have
random tokens twice. Others: as `seen_bigrams` draws them, three times. Their results are zero, everything after anew.

- ablated_label_prob: mean probability of the right token, by what is ablated (intact, induction, same_layers; the last
  the mean over draws) and label; [0, 1].
- in_copying_set: 1 for the heads of the set.

The first 256 held-out rows; the heads are chosen on the first 128. Source: ours, after Olsson et al. 2022, Argument 4
("the same heads"), where heads are shown and not ablated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.measures.ablation import ablate_sets
from icl_jax.measures.label_matching import label_matching
from icl_jax.measures.measurement import Context, Measurement, Variable, needs_layers
from icl_jax.measures.seen_bigrams import N_DRAWS, choose_sets
from icl_jax.measures.snapshot import Snapshot

_N_ROWS, _N_ROWS_TO_CHOOSE = 256, 128
_COPIED = "novel_name"


def look(at: Snapshot, numbers: jax.Array, random: jax.Array) -> dict[str, jax.Array]:
    rows, labels = at.rows["held_out"][:_N_ROWS], at.rows["labels"][:_N_ROWS]
    few = slice(_N_ROWS_TO_CHOOSE)
    is_copied = (labels[few] == numbers[0]).astype(jnp.int32)
    score = label_matching(at.params, rows[few], is_copied, 1, at.config)[0]
    induction, others = choose_sets(score, random)
    sets = jnp.concatenate([jnp.zeros_like(induction)[None], induction[None], others])
    prob_KBT = jnp.exp(-ablate_sets(at.params, rows, at.config, sets))
    is_here_LBT = (labels[None, :, 1:] == numbers[1:, None, None]).astype(jnp.float32)
    count_L = jnp.sum(is_here_LBT, axis=(1, 2))
    prob_KL = jnp.einsum("KBT,LBT->KL", prob_KBT, is_here_LBT) / jnp.where(count_L > 0, count_L, jnp.nan)[None]
    drawn = jnp.where(jnp.any(others), jnp.mean(prob_KL[2:], axis=0), jnp.nan)
    return {
        "ablated_label_prob": jnp.concatenate([prob_KL[:2], drawn[None]]),
        "in_copying_set": induction.astype(jnp.float32),
    }


def _reads(context: Context) -> tuple[np.ndarray, ...]:
    model = context.config.model
    labels = np.arange(1, 1 + len(context.label_names))
    random = np.random.default_rng([context.seed, 5]).random((N_DRAWS, model.n_layers, model.n_heads), np.float32)
    return np.concatenate([[1 + context.label_names.index(_COPIED)], labels]), random


def why_not(context: Context) -> str | None:
    if _COPIED not in context.label_names:
        return f"the corpus has no new names; data.source = {context.config.data.source!r}"
    return needs_layers(context)


MEASUREMENT = Measurement(
    name="label_ablation",
    source="ours, after Olsson et al. 2022, Argument 4",
    variables={
        "ablated_label_prob": Variable(
            ("ablated_set", "label"), "1", "mean probability of the right token without the heads of a set; [0, 1]",
            "no token carries the label; the layers of the copying heads have no other heads",
        ),
        "in_copying_set": Variable(("layer", "head"), "1", "1 for the heads of the set induction, else 0"),
    },
    look=look,
    reads=_reads,
    why_not=why_not,
    on_few=True,
)  # fmt: skip
