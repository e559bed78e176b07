"""TPU generations: published figures, and the names that clouds and their tools have for each.

Sources: Google Cloud's pages of each version (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e) for arithmetic, memory and
links, whose bidirectional figure for a chip is here divided by its links and by two; for the links of v4, Jouppi et al.
2023 (arXiv:2304.01433). HBM is what libtpu's compiler lets a program use, less than a chip has. Prices are on demand in
us-central1, from Google's list as SkyPilot's catalogue of 2025 holds it; v4 is not sold there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Tpu:
    """One chip of a generation as published, and how the tools name it."""

    n_axes: int
    """Of a slice's topology and of the torus: two links each."""
    tflops: float
    """Peak of bfloat16 products, 10^12 a second."""
    hbm_gib: float
    hbm_gb_per_s: float
    link_gb_per_s: float
    """Of one link to a neighbour, in each direction."""
    usd_per_hour: float | None
    accelerator_type: str
    """Prefix of gcloud's --accelerator-type; SkyPilot puts "tpu-" before it."""
    n_cores: int
    """How a chip counts in the accelerator type."""
    runtime_version: str
    """Image of a TPU VM."""
    gke_accelerator: str


TPUS = {
    "v4": Tpu(
        n_axes=3, tflops=275, hbm_gib=30.75, hbm_gb_per_s=1200, link_gb_per_s=50, usd_per_hour=None,
        accelerator_type="v4", n_cores=2, runtime_version="tpu-ubuntu2204-base", gke_accelerator="tpu-v4-podslice",
    ),
    "v5e": Tpu(
        n_axes=2, tflops=197, hbm_gib=15.75, hbm_gb_per_s=819, link_gb_per_s=50, usd_per_hour=1.20,
        accelerator_type="v5litepod", n_cores=1, runtime_version="v2-alpha-tpuv5-lite",
        gke_accelerator="tpu-v5-lite-podslice",
    ),
    "v5p": Tpu(
        n_axes=3, tflops=459, hbm_gib=95.74, hbm_gb_per_s=2765, link_gb_per_s=100, usd_per_hour=4.20,
        accelerator_type="v5p", n_cores=2, runtime_version="v2-alpha-tpuv5", gke_accelerator="tpu-v5p-slice",
    ),
    "v6e": Tpu(
        n_axes=2, tflops=918, hbm_gib=31.25, hbm_gb_per_s=1638, link_gb_per_s=100, usd_per_hour=2.70,
        accelerator_type="v6e", n_cores=1, runtime_version="v2-alpha-tpuv6e", gke_accelerator="tpu-v6e-slice",
    ),
}  # fmt: skip

_SIDE = r"[1-9]\d{0,2}"
TOPOLOGY = "|".join(["", *(f"{name}:{'x'.join([_SIDE] * tpu.n_axes)}" for name, tpu in TPUS.items())])
"""Regular expression of a slice, such as v5e:4x4, or of none."""
