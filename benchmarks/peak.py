"""The float32 matmul peak of this machine, measured: what model FLOPs are a share of."""

import time
from collections.abc import Callable

import numpy as np

_SIZE = 2048


def _products() -> list[Callable[[], object]]:
    """The same product by every library that is here, each on all cores."""
    import jax

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((_SIZE, _SIZE), np.float32) for _ in range(2))
    on_device = jax.device_put((a, b), jax.devices("cpu")[0])
    compiled = jax.jit(lambda a, b: a @ b)
    products: list[Callable[[], object]] = [lambda: np.matmul(a, b), lambda: compiled(*on_device).block_until_ready()]
    try:
        import torch
    except ImportError:
        return products
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    return [*products, lambda: torch.mm(*tensors)]


def matmul_gflops(repeats: int = 6) -> float:
    """GFLOP/s of the fastest of several square products, by the fastest library."""
    best_s = float("inf")
    for product in _products():
        for _ in range(repeats):
            start_s = time.perf_counter()
            product()
            best_s = min(best_s, time.perf_counter() - start_s)
    return 2 * _SIZE**3 / best_s / 1e9


# Dense bfloat16 TFLOP/s of NVIDIA's data sheets, by a part of the device's name; the first that is in it counts.
_GPU_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10G": 70}


def gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name(0)


def gpu_gflops() -> float:
    """Published bfloat16 peak of this machine's first GPU in GFLOP/s; NaN for one that is not in the table."""
    name = gpu_name()
    return 1e3 * next((tflops for part, tflops in _GPU_TFLOPS.items() if part in name), float("nan"))
