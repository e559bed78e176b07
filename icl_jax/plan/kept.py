"""Plans of several runs, each program compiled once and kept in a folder."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from icl_jax import process
from icl_jax.config import Config
from icl_jax.display import say

if TYPE_CHECKING:
    from icl_jax.plan.compiled import Plan


def kept_plans(configs: Mapping[str, Config], folder: Path, console: Console) -> list["Plan"]:
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
