"""`icl-jax compile`: what a config's training step needs on a TPU slice, from the compiled program, without a TPU."""

import re
from dataclasses import dataclass, replace
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import process
from icl_jax.cli.arguments import find_config
from icl_jax.config import Config, LaunchConfig, UserError
from icl_jax.config.builtin import builtin_config_names
from icl_jax.display import say
from icl_jax.plan.tell import describe, table_rows


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
            for line in describe(plan):
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
        if config.members:
            raise UserError(f"members.seeds = {config.members.seeds!r}: compile plans one run: leave [members] out")
        config.train.rows_per_device(config.launch.n_chips)
        found[path.stem] = config
    return found


def _with_mesh(config: Config, mesh: str) -> Config:
    found = re.fullmatch(r"data=([1-9]\d*),fsdp=([1-9]\d*)", mesh)
    n_chips = config.launch.n_chips
    if not found or int(found.group(1)) * int(found.group(2)) != n_chips:
        raise UserError(f"--mesh = {mesh!r}: must be data=A,fsdp=B with A x B = {n_chips} chips")
    return replace(config, train=replace(config.train, parallel="mesh", fsdp=int(found.group(2))))
