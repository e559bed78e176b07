"""The training step compiled for a TPU slice that need not be here: what it needs, and what it can reach at best."""

import importlib.util
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import jax
from jax.experimental import topologies

from icl_jax.config import Config, UserError
from icl_jax.model.params import n_params
from icl_jax.plan.chips import FLOAT32_PASSES, GIB, Slice
from icl_jax.plan.flops import executed_flops, step_flops
from icl_jax.plan.hlo import Collective, HloProgram
from icl_jax.train.parallel import ParallelStep


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """Facts of a compiled step, for one device."""

    argument_bytes: int
    output_bytes: int
    aliased_bytes: int
    """Of the outputs, those that take the place of arguments: a donated state."""
    temporary_bytes: int
    code_bytes: int
    xla_flops: float
    """The compiler's own count, each loop's body once and kernels not at all; here for comparison only."""
    xla_bytes: float
    hbm_bytes: int
    """Read and written in a step, loops counted as often as they run."""
    collectives: tuple[Collective, ...]
    coordinates: tuple[tuple[int, ...], ...]
    """Where in the slice each device is, numbered as in the collectives; empty for devices that are in none."""

    @property
    def peak_bytes(self) -> int:
        """Memory that must be there at once."""
        return self.argument_bytes + self.output_bytes - self.aliased_bytes + self.temporary_bytes + self.code_bytes


class DoesNotFitError(Exception):
    """The compiler cannot fit the step into a chip's memory; `n_bytes`: how much too large it is, where it says so."""

    def __init__(self, n_bytes: float | None) -> None:
        super().__init__("does not fit")
        self.n_bytes = n_bytes


def slice_devices(topology: str) -> list[Any]:
    """Devices of a slice that stand for the real ones in compiling; `icl_jax.process.compile_for_tpu` comes first.

    Raises UserError where there is no slice of that shape or libtpu is missing.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs libtpu: pip install 'icl-jax[tpu]'")
    # The two cores of a v4 chip act as one device on a real slice.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"--topology = {topology!r}: {reason}") from None


def compile_step(config: Config, devices: list[Any]) -> Program:
    """Compile the step of `icl-jax train` for devices. Raises UserError if the batch does not divide among them.

    Raises DoesNotFitError if the compiler finds that memory does not suffice.
    """
    step = ParallelStep(config, devices)
    try:
        compiled = step.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFitError(_excess_bytes(str(error))) from None
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert memory is not None
    assert cost is not None
    assert text is not None
    program = HloProgram(text, len(devices))
    return Program(
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        aliased_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        xla_flops=float(cost["flops"]),
        xla_bytes=float(cost["bytes accessed"]),
        hbm_bytes=program.hbm_bytes,
        collectives=tuple(program.collectives()),
        coordinates=tuple(tuple(getattr(device, "coords", ())) for device in step.devices),
    )


def _excess_bytes(message: str) -> float | None:
    """From "Exceeded hbm capacity by 4.1G", or "(20.5G) exceeds available HBM (15.75G)"."""
    if found := re.search(r"Exceeded hbm capacity by ([\d.]+)([KMGT])", message):
        return _bytes(*found.groups())
    if found := re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", message):
        return _bytes(*found.groups()[:2]) - _bytes(*found.groups()[2:])
    return None


def _bytes(number: str, unit: str) -> float:
    return float(number) * 2.0 ** (10 * (1 + "KMGT".index(unit)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The best that a config can do on a slice: a bound by its slowest resource, all others hidden behind it."""

    slice_name: str
    n_chips: int
    step_flops: int
    executed_flops: int
    compute_s: float
    hbm_s: float
    interconnect_s: float
    tokens_per_step: int
    n_steps: int
    mfu: float
    """Model FLOPs over what the chips could do in that time: no run can be above it."""
    usd_per_chip_hour: float | None

    @property
    def step_s(self) -> float:
        return max(self.compute_s, self.hbm_s, self.interconnect_s)

    @property
    def bound(self) -> str:
        """What the step waits for."""
        terms = {"arithmetic": self.compute_s, "memory": self.hbm_s, "interconnect": self.interconnect_s}
        return max(terms, key=lambda name: terms[name])

    @property
    def tokens_per_s(self) -> float:
        return self.tokens_per_step / self.step_s

    @property
    def hours(self) -> float:
        return self.n_steps * self.step_s / 3600

    @property
    def chip_hours(self) -> float:
        return self.hours * self.n_chips

    @property
    def usd(self) -> float | None:
        return None if self.usd_per_chip_hour is None else self.chip_hours * self.usd_per_chip_hour


def estimate(config: Config, program: Program, tpu: Slice, price: float | None = None) -> Estimate:
    """Roofline of a step compiled for a slice; `price` is in dollars per chip-hour, by default the published one."""
    chip, n_chips = tpu.chip, tpu.n_chips
    executed = executed_flops(config)
    n_passes = FLOAT32_PASSES if config.model.compute_dtype == "float32" else 1
    compute_s = n_passes * executed / n_chips / (chip.tflops * 1e12)
    hbm_s = program.hbm_bytes / (chip.hbm_gb_per_s * 1e9)
    interconnect_s = sum(c.count * tpu.collective_s(c, program.coordinates) for c in program.collectives)
    step_s = max(compute_s, hbm_s, interconnect_s)
    return Estimate(
        slice_name=tpu.name,
        n_chips=n_chips,
        step_flops=step_flops(config),
        executed_flops=executed,
        compute_s=compute_s,
        hbm_s=hbm_s,
        interconnect_s=interconnect_s,
        tokens_per_step=config.tokens_per_step,
        n_steps=config.train.n_steps,
        mfu=step_flops(config) / (n_chips * chip.tflops * 1e12 * step_s),
        usd_per_chip_hour=chip.usd_per_hour if price is None else price,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a config needs on a slice."""

    name: str
    topology: str
    parallel: str
    n_params: int
    program: Program | None
    """None: the compiler found no way to fit it into the chips' memory."""
    excess_bytes: float | None
    """How much too large it is for a chip, where it does not fit and that is known."""
    estimate: Estimate | None


def plan_to_json(plan: Plan) -> str:
    """One line."""
    return json.dumps(asdict(plan))


def plan_from_json(text: str) -> Plan:
    """What `plan_to_json` wrote. Raises TypeError or ValueError for anything else."""
    raw = json.loads(text)
    if program := raw.get("program"):
        collectives = tuple(Collective(**{**c, "group": tuple(c["group"])}) for c in program["collectives"])
        coordinates = tuple(tuple(at) for at in program["coordinates"])
        raw["program"] = Program(**{**program, "collectives": collectives, "coordinates": coordinates})
    if raw.get("estimate"):
        raw["estimate"] = Estimate(**raw["estimate"])
    return Plan(**raw)


def make_plan(name: str, config: Config, price: float | None = None) -> Plan:
    """Compile a config's step for the slice that it names, and what follows. Raises UserError."""
    tpu = Slice(config.launch.topology)
    devices = slice_devices(tpu.name)
    excess: float | None = None
    program: Program | None = None
    try:
        program = compile_step(config, devices)
        excess = max(0.0, program.peak_bytes - tpu.chip.hbm_gib * GIB) or None
    except DoesNotFitError as error:
        excess = error.n_bytes
    n_data = tpu.n_chips // config.train.fsdp
    return Plan(
        name=name,
        topology=tpu.name,
        parallel="pmap" if config.train.parallel == "pmap" else f"data={n_data},fsdp={config.train.fsdp}",
        n_params=n_params(config.model),
        program=program,
        excess_bytes=excess,
        estimate=estimate(config, program, tpu, price) if program is not None and excess is None else None,
    )
