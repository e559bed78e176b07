"""The float32 matmul peak of this machine, measured: what model FLOPs are a share of."""

import time

import numpy as np

_SIZE = 1536


def matmul_gflops(repeats: int = 5) -> float:
    """GFLOP/s of the fastest of several square products by NumPy's BLAS on all cores."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((_SIZE, _SIZE), np.float32) for _ in range(2))
    out = np.empty_like(a)
    best_s = float("inf")
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        np.matmul(a, b, out=out)
        best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * _SIZE**3 / best_s / 1e9
