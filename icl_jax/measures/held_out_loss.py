"""The loss of every held-out token at every snapshot, and what is kept of it.

``loss[row, t]`` is -log p(token t + 1 | tokens 0..t) in nats, token 0 being BOS. Kept are its mean at each position,
the loss of some 2,000 tokens one by one (the per-token loss vectors of the paper), each row's ICL scores (for
the bootstrap and standard errors), the mean over each class of tokens, and a few whole rows to look at.

Range [0, inf); a uniform prediction gives ln(vocab_size) at every token.
Source: Olsson et al. 2022, appendix "Data collection (1)". Departures: held-out rows of the run in place of 10,000
examples of 512 tokens; several tokens a row where the paper takes one (see `Context.sampled`).
"""

import numpy as np
from jaxtyping import Array, Float, Int

from icl_jax.config import ModelConfig
from icl_jax.maths.activations import AnyParams
from icl_jax.maths.icl_score import icl_score, icl_windowed
from icl_jax.measures.measurement import Arrays, Context, Measurement, StackedParams, Variable
from icl_jax.measures.snapshot import predictions
from icl_jax.measures.token_classes import CLASSES, class_means, classify_tokens
from icl_jax.model.tokens import takes_rows


@takes_rows
def held_out_loss(
    params: AnyParams, rows: Int[Array, "B tokens"] | np.ndarray, config: ModelConfig
) -> Float[Array, "B T"]:
    """Loss in nats of predicting each token of each row but its first."""
    return predictions(params, rows, config)[0]


def icl_windowed_by_row(loss: Float[np.ndarray, "*S B T"]) -> Float[np.ndarray, "*S B"]:
    """Windowed ICL score of each row on its own, nats; its mean over rows is the run's windowed score."""
    return icl_windowed(loss)


def finish(context: Context, _params: StackedParams, seen: Arrays) -> Arrays:
    loss_SBT = seen["loss"]
    rows, positions = context.sampled
    classes = classify_tokens(context.held_out)
    return {
        "loss_by_position": loss_SBT.mean(axis=1),
        "token_loss": loss_SBT[:, rows, positions],
        "row_icl": icl_windowed_by_row(loss_SBT),
        "row_icl_score": icl_score(loss_SBT),
        "example_loss": loss_SBT[:, : context.n_examples],
        **class_means(loss_SBT, classes),
    }


MEASUREMENT = Measurement(
    name="held_out_loss",
    source="Olsson et al. 2022, appendix Data collection (1)",
    variables={
        "loss_by_position": Variable(
            ("position",), "nats", "mean over held-out rows of the loss of token t + 1; 0 or more"
        ),
        "token_loss": Variable(
            ("token",), "nats", "loss of single held-out tokens, the same ones at each snapshot; 0 or more"
        ),
        "row_icl": Variable(
            ("row",), "nats", "windowed ICL score of each held-out row; negative: better late than early"
        ),
        "row_icl_score": Variable(("row",), "nats", "the ICL score at single positions of each held-out row"),
        "example_loss": Variable(
            ("example", "position"), "nats", "loss of every token of the first held-out rows; 0 or more"
        ),
        **{
            f"{name}_loss": Variable((), "nats", f"mean loss of {text}", missing="no held-out token is of this class")
            for name, text in CLASSES.items()
        },
    },
    look=lambda at: {"loss": at.loss},
    finish=finish,
)
