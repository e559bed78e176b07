"""TPU slices: how fast their links carry a collective."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from icl_jax.config.tpus import TPUS, Tpu
from icl_jax.plan.hlo import Collective

GIB = 2**30
# A product of float32 factors is six of bfloat16 (jax.lax.Precision.HIGHEST).
FLOAT32_PASSES = 6


@dataclass(frozen=True, slots=True)
class Slice:
    """A TPU slice such as v5e:4x4."""

    name: str

    @property
    def chip(self) -> Tpu:
        return TPUS[self.name.partition(":")[0]]

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
        if self.chip.n_axes == 2:
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
