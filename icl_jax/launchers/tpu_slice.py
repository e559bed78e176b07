"""TPU slices of a cloud, as its targets name and share them."""

import re
from dataclasses import dataclass
from math import prod

from icl_jax.config import UserError
from icl_jax.config.tpus import TPUS, Tpu
from icl_jax.launchers.target import Job, Options, flag


@dataclass(frozen=True, slots=True)
class Slice:
    """A TPU slice such as v5e:4x4."""

    tpu: Tpu
    topology: str
    n_chips: int

    @property
    def chips_per_host(self) -> int:
        return min(self.n_chips, 4)

    @property
    def accelerator_type(self) -> str:
        return f"{self.tpu.accelerator_type}-{self.n_chips * self.tpu.n_cores}"


@dataclass(frozen=True, kw_only=True)
class SliceOptions(Options):
    """Of targets that have TPU slices."""

    topology: str = flag("", "TPU slice, such as v5e:4x4. Default: the config's launch.topology.")
    spot: bool = flag(False, "cheaper machines that can be taken away; training goes on on the next ones.")

    def slice_for(self, job: Job) -> Slice:
        """The slice. Raises UserError where none is named, there is none such or the batch does not divide over it."""
        topology = self.topology or job.config.launch.topology
        if not topology:
            raise UserError(f"--topology is missing: --on {job.on} needs a slice, such as v5e:4x4")
        found = _parse(topology)
        job.config.train.rows_per_device(found.n_chips)  # refused here, and not on a slice that costs money
        return found


def _parse(text: str) -> Slice:
    generation, _, topology = text.partition(":")
    tpu = TPUS.get(generation)
    is_known = tpu is not None and re.fullmatch(r"[1-9]\d{0,2}" + r"x[1-9]\d{0,2}" * (tpu.n_axes - 1), topology)
    n_chips = prod(int(n) for n in topology.split("x")) if is_known else 0
    if tpu is None or (n_chips not in (1, 2) and n_chips % 4):
        raise UserError(f"--topology = {text!r}: must be {', '.join(TPUS)} and the slice, such as v5e:4x4 or v5p:2x2x4")
    if not is_known:
        example = "x".join(["2", "2", "4"][-tpu.n_axes :])
        raise UserError(
            f"--topology = {text!r}: a slice of {generation} has {tpu.n_axes} axes, such as {generation}:{example}"
        )
    return Slice(tpu, topology, n_chips)
