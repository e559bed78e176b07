"""TPU chips and slices: published figures, and how fast a slice's links carry a collective.

Sources: Google Cloud's pages of each version (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e) for arithmetic, memory and
links, whose bidirectional figure for a chip is here divided by its links and by two; for the links of v4, Jouppi et al.
2023 (arXiv:2304.01433). HBM is what libtpu's compiler lets a program use, less than a chip has. Prices are on demand in
us-central1, from Google's list as SkyPilot's catalogue of 2025 holds it; v4 is not sold there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from icl_jax.plan.hlo import Collective

GIB = 2**30
# A product of float32 factors is six of bfloat16 (jax.lax.Precision.HIGHEST).
FLOAT32_PASSES = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
    """One TPU chip as published."""

    tflops: float
    """Peak of bfloat16 products, 10^12 a second."""
    hbm_gib: float
    hbm_gb_per_s: float
    link_gb_per_s: float
    """Of one link to a neighbour, in each direction."""
    n_sides: int
    """Axes of the torus: two links each."""
    usd_per_hour: float | None


CHIPS = {
    "v4": Chip(tflops=275, hbm_gib=30.75, hbm_gb_per_s=1200, link_gb_per_s=50, n_sides=3, usd_per_hour=None),
    "v5e": Chip(tflops=197, hbm_gib=15.75, hbm_gb_per_s=819, link_gb_per_s=50, n_sides=2, usd_per_hour=1.20),
    "v5p": Chip(tflops=459, hbm_gib=95.74, hbm_gb_per_s=2765, link_gb_per_s=100, n_sides=3, usd_per_hour=4.20),
    "v6e": Chip(tflops=918, hbm_gib=31.25, hbm_gb_per_s=1638, link_gb_per_s=100, n_sides=2, usd_per_hour=2.70),
}


@dataclass(frozen=True, slots=True)
class Slice:
    """A TPU slice such as v5e:4x4."""

    name: str

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.partition(":")[0]]

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.name.partition(":")[2].split("x"))

    @property
    def n_chips(self) -> int:
        return math.prod(self.sides)

    def is_ring(self, axis: int) -> bool:
        """Whether links lead from the last chip of an axis back to the first.

        v5e and v6e: only where the slice spans the pod, 16 chips; v4 and v5p: in slices of whole cubes of 4x4x4.
        """
        if self.chip.n_sides == 2:
            return self.sides[axis] == 16
        return all(n % 4 == 0 for n in self.sides)

    def collective_s(self, collective: Collective, coordinates: Sequence[Sequence[int]]) -> float:
        """Least seconds that one such collective takes: bytes through a chip's links, all of them busy.

        `coordinates`: those of each device, numbered as in the mesh. An all-gather or reduce-scatter of B bytes over n
        chips sends B (n-1)/n through every chip, an all-reduce twice that. On a ring each chip receives from both
        sides; on an open line its end has one link only. Axes work side by side. Latency counts nothing.
        """
        n = len(collective.group)
        if n < 2:
            return 0.0
        shares = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "all-to-all": (n - 1) / n}
        sent = collective.n_bytes * shares.get(collective.kind, (n - 1) / n)
        members = [coordinates[i] for i in collective.group]
        box = [max(at[a] for at in members) - min(at[a] for at in members) + 1 for a in range(len(self.sides))]
        links = 0
        for axis, extent in enumerate(box):
            if extent > 1:
                links += 2 if extent == self.sides[axis] and self.is_ring(axis) and extent > 2 else 1
        # Groups that lie in one another's way share the links of the box around them.
        crowding = math.prod(box) / n
        return sent * crowding / (links * self.chip.link_gb_per_s * 1e9)
