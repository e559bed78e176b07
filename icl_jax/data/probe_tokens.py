"""Tokens eligible for random repeated sequences."""

import numpy as np
from numpy.typing import NDArray

EXCLUDED_FRACTION = 0.05


def eligible_tokens(counts_V: NDArray[np.int64], bos_id: int) -> NDArray[np.int32]:
    """Ids seen in the corpus but for BOS and the most and the least common 5 %, sorted, int32.

    The fraction is of the ids seen (rounded), not of the tokens. Among equally common ids the lower id counts as
    the more common. Source: Olsson et al. 2022, appendix ("excluding the most common and least common tokens"; the
    paper does not give the share, 5 % is ours).
    """
    seen = np.flatnonzero(counts_V)
    seen = seen[seen != bos_id]
    by_count = seen[np.argsort(-counts_V[seen], kind="stable")]
    n_excluded = round(EXCLUDED_FRACTION * len(seen))
    return np.sort(by_count[n_excluded : len(seen) - n_excluded]).astype(np.int32)
