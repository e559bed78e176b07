"""How far the cheap form of patching can be trusted: its correlation with the exact one, at each snapshot.

Pearson's, of `head_attribution` with `patched_head_effect` over heads, and of the attributions with the exact effects
over all paths through q, k and v. [-1, 1]; 1 where effects are linear. Source: ours; Nanda 2023 compares them so.
"""

import numpy as np
import xarray as xr

from icl_jax.measures.attribution_patching import agreement
from icl_jax.measures.measurement import Context, Derived, Variable
from icl_jax.measures.path_runs import THROUGH

_PATHS = {name: (f"{name}_path_effect", f"{name}_path_attribution") for name in THROUGH}


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    exact, cheap = (np.stack([dataset[of[i]].values for of in _PATHS.values()], axis=1) for i in (0, 1))
    heads = dataset["patched_head_effect"].values, dataset["head_attribution"].values
    return {
        name: np.array([agreement(*of) for of in zip(*both, strict=True)])
        for name, both in (("head_agreement", heads), ("path_agreement", (exact, cheap)))
    }


_NO_SPREAD = "all effects are the same"

DERIVED = Derived(
    name="patching_agreement",
    source="ours; after Nanda 2023",
    needs=("patched_head_effect", "head_attribution", *(name for of in _PATHS.values() for name in of)),
    variables={
        "head_agreement": Variable(
            ("selected",),
            "1",
            "correlation of attributed with exact effects over heads; [-1, 1]",
            _NO_SPREAD,
        ),
        "path_agreement": Variable(
            ("selected",), "1", "correlation of attributed with exact effects over paths; [-1, 1]", _NO_SPREAD
        ),
    },
    derive=derive,
)
