"""`icl-jax compile`: what a config's training step needs on a TPU slice, from the compiled program, without a TPU."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.config import Config, LaunchConfig, UserError
from icl_jax.config.builtin import builtin_config_names
from icl_jax.display import say

if TYPE_CHECKING:
    from icl_jax.plan.compiled import Plan


@dataclass(frozen=True, kw_only=True)
class CompileArgs:
    """Arguments of `icl-jax compile`."""

    configs: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="CONFIG")] = ()
    """TOML files or names of configs; none: all that come with icl-jax and name a slice."""
    topology: str = ""
    """TPU slice, such as v5e:4x4 or v5p:4x4x8. Default: the config's launch.topology."""
    mesh: str = ""
    """How the chips share the work, such as data=8,fsdp=2. Default: the config's train.parallel and train.fsdp."""
    price: float = 0.0
    """Dollars per chip-hour; 0: the published on-demand price, where there is one."""
    json: bool = False
    """Print a line of JSON for each config."""


def compile_configs(args: CompileArgs, console: Console) -> int:
    """Print the plan of one config, or a Markdown table of several. Returns 0, or 1 where one does not fit."""
    if args.price < 0:
        raise UserError(f"--price = {args.price}: must be 0 or more")
    configs = _configs(args)
    process.compile_for_tpu()
    from icl_jax.plan.compiled import make_plan, plan_to_json

    plans = []
    for name, config in configs.items():
        plan = make_plan(name, config, args.price or None)
        plans.append(plan)
        if args.json:
            say(console, plan_to_json(plan))
        elif len(configs) > 1:
            for line in table_rows([plan])[0 if len(plans) == 1 else 2 :]:
                say(console, line)
        else:
            for line in _describe(config, plan):
                say(console, line)
    return 0 if all(plan.estimate is not None for plan in plans) else 1


def _configs(args: CompileArgs) -> dict[str, Config]:
    """By name, each with its slice. Raises UserError where one has none, or its batch does not divide."""
    found = {}
    for name in args.configs or builtin_config_names():
        path, config = find_config(name)
        if args.topology:
            try:
                config = replace(config, launch=LaunchConfig(topology=args.topology))
            except UserError as error:
                raise UserError(str(error).replace("launch.topology", "--topology")) from None
        if not config.launch.topology:
            if not args.configs:
                continue
            raise UserError(f"{path}: names no slice; give --topology, or set launch.topology")
        if args.mesh:
            config = _with_mesh(config, args.mesh)
        config.train.rows_per_device(config.launch.n_chips)
        found[path.stem] = config
    return found


def _with_mesh(config: Config, mesh: str) -> Config:
    found = re.fullmatch(r"data=([1-9]\d*),fsdp=([1-9]\d*)", mesh)
    n_chips = config.launch.n_chips
    if not found or int(found.group(1)) * int(found.group(2)) != n_chips:
        raise UserError(f"--mesh = {mesh!r}: must be data=A,fsdp=B with A x B = {n_chips} chips")
    return replace(config, train=replace(config.train, parallel="mesh", fsdp=int(found.group(2))))


def plan_suite(configs: Mapping[str, Config], folder: Path, console: Console) -> list["Plan"]:
    """Plans of several runs, by name; each program is compiled once and kept in the folder. Raises UserError."""
    process.compile_for_tpu()
    from icl_jax.plan.compiled import make_plan, plan_from_json, plan_to_json

    for config in configs.values():
        config.train.rows_per_device(config.launch.n_chips)
    folder.mkdir(parents=True, exist_ok=True)
    versions = [metadata.version(name) for name in ("icl-jax", "jax", "libtpu") if _is_installed(name)]
    plans = []
    for name, config in configs.items():
        program = repr((config.model, replace(config.train, seed=0), config.optimizer, config.launch, versions))
        file = folder / f"{hashlib.sha256(program.encode()).hexdigest()[:16]}.json"
        if file.exists():
            plans.append(replace(plan_from_json(file.read_text(encoding="utf-8")), name=name))
            continue
        say(console, f"{name}: compiles for {config.launch.topology}")
        plans.append(make_plan(name, config))
        half = file.with_suffix(".part")
        half.write_text(plan_to_json(plans[-1]), encoding="utf-8")
        half.replace(file)
    return plans


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


_COLUMNS = ("config", "parameters", "slice", "devices", "GiB a chip", "step, s", "bound by", "MFU", "tokens/s", "hours",
            "chip-hours", "cost")  # fmt: skip


def table_rows(plans: Sequence["Plan"]) -> list[str]:
    """A Markdown table."""
    rows = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for plan in plans:
        cells = [plan.name, short(plan.n_params), plan.topology, plan.parallel]
        if plan.estimate is None or plan.program is None:
            cells += [f"does not fit{_excess(plan)}"] + [""] * 7
        else:
            e = plan.estimate
            cost = "" if e.usd is None else f"${e.usd:,.0f}"
            cells += [f"{_gib(plan.program.peak_bytes):.1f}", f"{e.step_s:.3g}", e.bound, f"{100 * e.mfu:.0f} %"]
            cells += [short(e.tokens_per_s), f"{e.hours:,.1f}", f"{e.chip_hours:,.0f}", cost]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _describe(config: Config, plan: "Plan") -> Iterator[str]:
    from icl_jax.plan.chips import Slice

    hbm = f"{Slice(plan.topology).chip.hbm_gib:g} GiB of a {plan.topology.partition(':')[0]} chip"
    n_chips = config.launch.n_chips
    yield f"{plan.name} on {plan.topology}: {n_chips} chips, {plan.parallel}; {plan.n_params:,} parameters"
    program, e = plan.program, plan.estimate
    if program is None or e is None:
        yield f"does not fit into the {hbm}{_excess(plan)}: try more chips, a larger train.fsdp or train.accum_steps"
        return
    more = program.output_bytes - program.aliased_bytes
    yield f"fits: {_gib(program.peak_bytes):.2f} of the {hbm}"
    yield (
        f"  memory        arguments {_gib(program.argument_bytes):.2f} GiB (reused for outputs"
        f" {_gib(program.aliased_bytes):.2f}), other outputs {_gib(more):.2f}, temporaries"
        f" {_gib(program.temporary_bytes):.2f}, code {_gib(program.code_bytes):.2f}"
    )
    yield (
        f"  arithmetic    {short(e.step_flops, 'FLOP')} a step by the model's sizes, {short(e.executed_flops, 'FLOP')}"
        f" with what is computed again; the compiler's count, {short(program.xla_flops, 'FLOP')} a chip, has loops once"
        " and no kernels"
    )
    yield (
        f"  traffic       {short(program.hbm_bytes, 'B')} a chip between memory and cores; the compiler's count,"
        f" {short(program.xla_bytes, 'B')}, has loops once"
    )
    for c in program.collectives:
        yield f"  collective    {c.kind} of {short(c.n_bytes, 'B')} over {len(c.group)} chips, {c.count} a step"
    yield (
        f"  step          at least {e.step_s:.3g} s, bound by {e.bound}: arithmetic {e.compute_s:.3g}, memory"
        f" {e.hbm_s:.3g}, interconnect {e.interconnect_s:.3g}"
    )
    cost = "" if e.usd is None else f", ${e.usd:,.0f} at ${e.usd_per_chip_hour:.2f} a chip-hour"
    yield (
        f"  run           MFU at most {100 * e.mfu:.0f} %, {short(e.tokens_per_s)} tokens/s;"
        f" {short(e.n_steps * e.tokens_per_step)} tokens in {e.hours:,.1f} hours, {e.chip_hours:,.0f} chip-hours{cost}"
    )


def _excess(plan: "Plan") -> str:
    return "" if plan.excess_bytes is None else f", by {_gib(plan.excess_bytes):.2f} GiB"


def _gib(n_bytes: float) -> float:
    return n_bytes / 2**30


def short(number: float, unit: str = "") -> str:
    """Three digits and a prefix: 1.23 GB."""
    prefixes = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    prefix, size = next((entry for entry in prefixes if number >= entry[1]), ("", 1))
    return f"{number / size:.3g} {prefix}{unit}".rstrip()
