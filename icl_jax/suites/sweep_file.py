"""A sweep's file, W&B's own format, and the members that a sweep without W&B's server has."""

import hashlib
import json
import random
import re
import sys
import warnings
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from icl_jax.config import Config, UserError
from icl_jax.config.toml import field_types
from icl_jax.config.what_it_is import check_readable
from icl_jax.suites.suite import with_fields

_LOCAL_METHODS = ("grid", "random")


@dataclass(frozen=True, slots=True)
class SweepFile:
    """A sweep: what W&B is given, with parameters that are known to be fields of a config."""

    path: Path
    spec: dict[str, Any]
    """The file. Numbers of float fields are floats: YAML reads 1e-3 as a text."""

    @property
    def name(self) -> str:
        return str(self.spec.get("name", self.path.stem))

    @property
    def varied(self) -> list[str]:
        """Fields that can differ between members, in the order of the file."""
        parameters: dict[str, dict[str, Any]] = self.spec["parameters"]
        return [name for name, how in parameters.items() if "value" not in how and len(how.get("values", "ab")) > 1]

    def member_name(self, values: dict[str, Any]) -> str:
        """Names a member's folder by what it varies, as Hydra does: ``model.n_layers=2,optimizer.lr=0.003``."""
        parts = [f"{name}={_short(values[name])}" for name in self.varied]
        name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join(parts)) or self.path.stem
        # File systems end at 255 bytes.
        return name if len(name) <= 200 else f"{name[:180]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def config(self, base: Config, values: dict[str, Any]) -> Config:
        """The config of a member. Raises UserError for values that cannot work."""
        sections: dict[str, Any] = {}
        for name, value in values.items():
            *tables, field = name.split(".")
            reduce(lambda table, part: table.setdefault(part, {}), tables, sections)[field] = value
        where = f"{self.path}: {self.member_name(values)}"
        config = with_fields(base, sections, where)
        if config.members:
            raise UserError(
                f"{where}: members.seeds = {config.members.seeds!r}: must be empty: a sweep draws its members"
            )
        return config

    def members(self, count: int) -> dict[str, dict[str, Any]]:
        """Values of each member by its name, as W&B's package `sweeps` draws them; `count` 0: the whole grid.

        The file seeds the draws, so that the same file gives the same members and a higher count only more of them.
        Draws that are equal to six digits are one member. Raises UserError.
        """
        method = self.spec["method"]
        if method not in _LOCAL_METHODS:
            allowed = f"needs W&B online (wandb login); without it there are {' and '.join(_LOCAL_METHODS)}"
            raise UserError(f"{self.path}: method = {method!r}: {allowed}")
        count = count or self.spec.get("run_cap", 0)
        if method == "random" and not count:
            raise UserError("--count is missing: method = 'random' goes on for ever without it, or run_cap in the file")
        drawn = self._draw(count or sys.maxsize)
        return {self.member_name(values): values for values in drawn}

    def _draw(self, count: int) -> list[dict[str, Any]]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # written for an older pydantic
                import sweeps
        except ImportError:
            raise UserError('a sweep without W&B online needs its sampler: pip install "icl-jax[sweeps]"') from None
        wanted = {name: self.spec[name] for name in ("method", "parameters")}
        random.seed(hashlib.sha256(json.dumps(wanted, sort_keys=True, default=str).encode()).digest())
        try:
            runs = sweeps.next_runs(wanted, [], n=count)
        except Exception as error:  # jsonschema's, ValueError: they name the parameter
            raise UserError(f"{self.path}: {str(error).splitlines()[0]}") from None
        # A grid ends with None.
        return [{name: _plain(each["value"]) for name, each in run.config.items()} for run in runs if run is not None]


def load_sweep(path: Path) -> SweepFile:
    """Read a sweep's file. Raises UserError naming the file and the key."""
    check_readable(path, f"{path}: cannot read the sweep")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the sweep: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(spec, dict):
        raise UserError(f"{path}: must hold W&B's keys method and parameters")
    if not isinstance(spec.get("method"), str):
        raise UserError(f"{path}: method = {spec.get('method')!r}: must be grid, random or another of W&B's methods")
    cap = spec.get("run_cap", 1)
    if not isinstance(cap, int) or cap < 1:
        raise UserError(f"{path}: run_cap = {cap!r}: must be a whole number, 1 or more")
    parameters = spec.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{path}: parameters = {parameters!r}: must be fields of the config, such as model.n_layers")
    types = field_types()
    for name, how in parameters.items():
        if name not in types:
            raise UserError(f"{path}: parameters: unknown field {name!r}; fields are named such as model.n_layers")
        if not isinstance(how, dict):
            raise UserError(f"{path}: parameters.{name} = {how!r}: must have value, values, or min and max")
        if types[name] is float:
            parameters[name] = {key: _number(value) for key, value in how.items()}
    return SweepFile(path, spec)


def _number(value: Any) -> Any:
    """Numbers that YAML 1.1 takes for texts, such as 1e-3."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value  # the name of a distribution


def _plain(value: Any) -> Any:
    """NumPy's scalars are not what a config takes."""
    return value.item() if isinstance(value, np.generic) else value


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
