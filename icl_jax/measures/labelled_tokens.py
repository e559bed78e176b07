"""How well the model predicts the held-out tokens that the corpus labels: its behaviours, one by one.

A corpus that is made from rules knows what each of its tokens shows, for instance a phrase that is said again. For
every label, over all held-out tokens that carry it:

==========  ==============================================================================
label_loss  mean loss, nats
label_prob  mean probability of the right token, [0, 1]; 1 / V for a uniform prediction
label_top1  share of tokens that no other token is at least as likely as, [0, 1]
label_rank  mean rank of the right token, 1 the likeliest, [1, V]; ties count half
==========  ==============================================================================

The first 1,024 tokens of each label are kept one by one (`labelled_prob`, `labelled_rank`), for intervals.
Source: ours; the behaviours are those of the corpus. NaN for a label that no held-out token carries.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.measures.map_rows import map_rows
from icl_jax.measures.map_snapshots import as_jax, map_snapshots
from icl_jax.measures.measurement import Context, Measurement, StackedParams, Variable
from icl_jax.model.forward import final_resid, unembedding_DV
from icl_jax.model.params import Params


def predictions(
    params: Params | dict[str, np.ndarray], config: ModelConfig, rows: Int[Array, "B tokens"] | np.ndarray
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Loss (nats) and rank of every token of each row but its first. Rank 1 is the likeliest; ties count half."""
    params = as_jax(params)

    def some_rows(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BTD = final_resid(params, rows[:, :-1], config)
        W_U = unembedding_DV(params).astype(x_BTD.dtype)
        logits_BTV = jnp.einsum("BTD,DV->BTV", x_BTD, W_U, preferred_element_type=jnp.float32)
        right_BT1 = jnp.take_along_axis(logits_BTV, rows[:, 1:, None], axis=-1)
        loss_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - right_BT1[..., 0]
        above_BT = jnp.sum(logits_BTV > right_BT1, axis=-1, dtype=jnp.float32)
        equal_BT = jnp.sum(logits_BTV == right_BT1, axis=-1, dtype=jnp.float32)  # the right token itself among them
        return loss_BT, above_BT + (equal_BT + 1) / 2

    return map_rows(some_rows, rows)


def _one(config: ModelConfig, params: Params, rows: jax.Array) -> dict[str, jax.Array]:
    loss, rank = predictions(params, config, rows)
    return {"loss": loss, "rank": rank}


def measure(context: Context, params: StackedParams) -> dict[str, np.ndarray]:
    assert context.labels is not None
    found = map_snapshots(_one, context.config.model, params, context.held_out)
    loss_SBT, rank_SBT = found["loss"], found["rank"]
    labels_BT = context.labels[:, 1:]
    means: dict[str, list[np.ndarray]] = {"loss": [], "prob": [], "top1": [], "rank": []}
    none = np.full(len(loss_SBT), np.nan, np.float32)
    for number in range(1, len(context.label_names) + 1):
        is_here = labels_BT == number
        loss, rank = loss_SBT[:, is_here], rank_SBT[:, is_here]
        for name, values in {"loss": loss, "prob": np.exp(-loss), "top1": rank == 1, "rank": rank}.items():
            means[name].append(values.mean(axis=1, dtype=np.float32) if is_here.any() else none)
    rows, positions = context.labelled
    return {
        **{f"label_{name}": np.stack(values, axis=1) for name, values in means.items()},
        "labelled_prob": np.exp(-loss_SBT[:, rows, positions]),
        "labelled_rank": rank_SBT[:, rows, positions],
    }


_NO_TOKEN = "no held-out token carries the label"

MEASUREMENT = Measurement(
    name="labelled_tokens",
    source="ours; labels of the corpus",
    variables={
        "label_loss": Variable(("label",), "nats", "mean loss of the tokens of a label; 0 or more", _NO_TOKEN),
        "label_prob": Variable(("label",), "1", "mean probability of the right token, by label; [0, 1]", _NO_TOKEN),
        "label_top1": Variable(("label",), "1", "share of tokens ranked first, by label; [0, 1]", _NO_TOKEN),
        "label_rank": Variable(("label",), "1", "mean rank of the right token, by label; 1 or more", _NO_TOKEN),
        "labelled_prob": Variable(("labelled",), "1", "probability of the right token, token by token; [0, 1]"),
        "labelled_rank": Variable(("labelled",), "1", "rank of the right token, token by token; 1 or more"),
    },
    measure=measure,
    why_not=lambda context: None if context.labels is not None else "the corpus does not label its tokens",
)
