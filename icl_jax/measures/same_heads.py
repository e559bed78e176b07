"""Are the heads that copy literally those that translate and match patterns: rank correlations over all heads.

Spearman's, at every snapshot, of `literal_copying_attention`, `translation_attention` and `pattern_matching_attention`,
ties sharing their ranks; [-1, 1]. NaN where a score is the same for all heads. Source: Olsson et al. 2022, Argument 4
("the same heads"), where it is three heads that are shown.
"""

import numpy as np
import xarray as xr

from icl_jax.measures.measurement import Context, Derived, Variable

_SCORES = {
    "literal": "literal_copying_attention",
    "translation": "translation_attention",
    "pattern": "pattern_matching_attention",
}
_PAIRS = (("literal", "translation"), ("literal", "pattern"), ("translation", "pattern"))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; NaN where one of them does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(values) - (values.size + 1) / 2 for values in (a.ravel(), b.ravel()))
    size = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / size) if size else np.nan


def derive(_context: Context, dataset: xr.Dataset) -> dict[str, np.ndarray]:
    scores = {name: dataset[variable].values for name, variable in _SCORES.items()}
    return {
        f"same_heads_{a}_{b}": np.array([rank_correlation(*both) for both in zip(scores[a], scores[b], strict=True)])
        for a, b in _PAIRS
    }


DERIVED = Derived(
    name="same_heads",
    source="ours, after Olsson et al. 2022, Argument 4",
    needs=tuple(_SCORES.values()),
    variables={
        f"same_heads_{a}_{b}": Variable(
            ("snapshot",), "1", f"rank correlation over heads of {_SCORES[a]} and {_SCORES[b]}; [-1, 1]",
            missing="a score is the same for all heads",
        )
        for a, b in _PAIRS
    },
    derive=derive,
)  # fmt: skip
