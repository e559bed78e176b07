"""The in-context learning score over training, from the held-out loss by position.

``icl_score = loss(token 500) - loss(token 50)`` at a context of 512, the same fractions of a shorter one;
``icl_windowed`` has means over windows of tokens in place of the two (see `icl_jax.model.icl_score`).
Range: negative is better; 0 for a model that ignores its context, about -0.4 for the paper's models after the change.
`icl_sem` is the standard error of the windowed score over held-out rows: the single positions of `icl_score` are
noisier still. Source: Olsson et al. 2022, "In-context learning score"; the windowed form is ours.
"""

import numpy as np
import xarray as xr

from icl_jax.measures.measurement import Context, Derived, Variable
from icl_jax.model.icl_score import icl_score, icl_windowed


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    loss_ST = dataset["loss_by_position"].values
    row_icl = dataset["row_icl"].values
    n_rows = row_icl.shape[1]
    return {
        "icl_score": icl_score(loss_ST).astype(np.float32),
        "icl_windowed": icl_windowed(loss_ST).astype(np.float32),
        "icl_sem": (row_icl.std(axis=1, ddof=1) / np.sqrt(n_rows) if n_rows > 1 else np.full(len(row_icl), np.nan)),
    }


DERIVED = Derived(
    name="icl",
    source="Olsson et al. 2022, In-context learning score",
    needs=("loss_by_position", "row_icl"),
    variables={
        "icl_score": Variable(("snapshot",), "nats", "late minus early loss at single tokens; negative: better"),
        "icl_windowed": Variable(("snapshot",), "nats", "late minus early loss over windows; negative: better"),
        "icl_sem": Variable(
            ("snapshot",), "nats", "standard error of icl_windowed over rows", missing="a single held-out row"
        ),
    },
    derive=derive,
)
