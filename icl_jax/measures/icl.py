"""The in-context learning score over training, from the held-out loss by position.

``icl_score = loss(token 500) - loss(token 50)`` at a context of 512, the same fractions of a shorter one;
``icl_windowed`` has means over windows of tokens in place of the two (see `icl_jax.maths.icl_score`).
Range: negative is better; about -0.4 for the paper's models after the change. A model that ignores its context has 0 on
text that is as hard to predict late as early, and on other text what that text does. `icl_sem` and `icl_score_sem` are
their standard errors over held-out rows: the single positions of `icl_score` say little on few rows.

Source: Olsson et al. 2022, "In-context learning score"; the windowed form is ours.
"""

import numpy as np
import xarray as xr
from jaxtyping import Float

from icl_jax.maths.icl_score import icl_score, icl_windowed
from icl_jax.measures.measurement import Context, Derived, Variable


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    loss_ST = dataset["loss_by_position"].values
    return {
        "icl_score": icl_score(loss_ST).astype(np.float32),
        "icl_windowed": icl_windowed(loss_ST).astype(np.float32),
        "icl_sem": standard_error(dataset["row_icl"].values),
        "icl_score_sem": standard_error(dataset["row_icl_score"].values),
    }


def standard_error(by_row: Float[np.ndarray, "S row"]) -> Float[np.ndarray, " S"]:
    n_rows = by_row.shape[1]
    return by_row.std(axis=1, ddof=1) / np.sqrt(n_rows) if n_rows > 1 else np.full(len(by_row), np.nan)


DERIVED = Derived(
    name="icl",
    source="Olsson et al. 2022, In-context learning score",
    needs=("loss_by_position", "row_icl", "row_icl_score"),
    variables={
        "icl_score": Variable(("snapshot",), "nats", "late minus early loss at single tokens; negative: better"),
        "icl_windowed": Variable(("snapshot",), "nats", "late minus early loss over windows; negative: better"),
        "icl_sem": Variable(
            ("snapshot",), "nats", "standard error of icl_windowed over rows", missing="a single held-out row"
        ),
        "icl_score_sem": Variable(
            ("snapshot",), "nats", "standard error of icl_score over rows", missing="a single held-out row"
        ),
    },
    derive=derive,
)
