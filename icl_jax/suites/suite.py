"""A suite: several runs that are trained, analyzed and reported together. One small TOML file.

title = "What can a model of n layers do?"
seeds = [0, 1, 2]                    # of the initial parameters; a member may have its own; "0..99": all in one run

[analysis]                           # how each run is analyzed; a member may have its own
snapshots = 30                       # per run; 0: all
rows = 512                           # held-out rows; 0: the default
only = ["labelled_tokens", "icl"]    # measurements; left out: all that apply

[[member]]
config = "stories-2l"                # a config that comes with icl-jax, or a path beside the suite's file
title = "two layers"

[[member]]
config = "stories-2l"
name = "three-layers"                # names the run's folder; the config's name where left out
title = "three layers"
set = { model = { n_layers = 3 } }   # fields of the config, as in its own file
"""

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from icl_jax.config.builtin import builtin_config_path
from icl_jax.config.errors import UserError
from icl_jax.config.members import MembersConfig
from icl_jax.config.schema import Config
from icl_jax.config.tables import merge, to_tables
from icl_jax.config.toml import build_config, load_config
from icl_jax.config.what_it_is import check_readable


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """Options of `icl-jax analyze` for a run."""

    snapshots: int = 0
    """How many; 0: all."""
    rows: int = 0
    """Held-out rows; 0: the default of `icl-jax analyze`."""
    only: tuple[str, ...] = ()
    """Measurements; empty: all that apply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One architecture of a suite, trained once for each seed, or once for all of them."""

    name: str
    title: str
    config: Config
    """Resolved, but for the seed."""
    seeds: tuple[int, ...] | str
    """A text, such as "0..99": of the members of one run."""
    analysis: Analysis

    def runs(self) -> dict[str, Config]:
        """Folder name and config of each run. The seed is of the initial parameters: all see the same rows in order."""
        if isinstance(self.seeds, str):
            return {self.name: with_fields(self.config, {"members": {"seeds": self.seeds}}, f"seeds of {self.name}")}
        many = len(self.seeds) > 1
        return {f"{self.name}-seed{seed}" if many else self.name: self._seeded(seed) for seed in self.seeds}

    def models(self) -> list[str]:
        """What is looked at one by one, as paths below the suite's folder."""
        return [
            f"{name}/members/{k}" if config.members else name
            for name, config in self.runs().items()
            for k in range(len(config.members) or 1)
        ]

    def _seeded(self, seed: int) -> Config:
        return with_fields(self.config, {"train": {"seed": seed}}, f"seeds of {self.name}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """What `icl-jax reproduce` runs."""

    name: str
    title: str
    members: tuple[Member, ...]


_KEYS = {"title", "seeds", "analysis", "member"}
_MEMBER_KEYS = {"config", "name", "title", "seeds", "set", "analysis"}
_ANALYSIS_KEYS = {"snapshots", "rows", "only"}


def load_suite(path: Path) -> Suite:
    """Read a suite's file. Raises UserError naming the file and the key."""
    check_readable(path, f"{path}: cannot read the suite")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the suite: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, not TOML
        raise UserError(f"{path}: not valid TOML: {error}") from None
    _check_keys(raw, _KEYS, path, "")
    title = _text(raw.get("title", path.stem), f"{path}: title")
    analysis = _analysis(raw.get("analysis", {}), Analysis(), path)
    raw_members = raw.get("member", [])
    if not isinstance(raw_members, list) or not raw_members:
        raise UserError(f"{path}: member is missing: a suite has one [[member]] or more")
    seeds = _seeds(raw.get("seeds", [0]), f"{path}: seeds")
    members = tuple(_member(each, seeds, analysis, path) for each in raw_members)
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"{path}: member.name = {twice!r}: names two members; give one of them another name")
    return Suite(name=path.stem, title=title, members=members)


def with_seeds(suite: Suite, seeds: str) -> Suite:
    """The suite with these seeds of each of its members, such as "0..99", in one run. Raises UserError."""
    found = _seeds(seeds, "--seeds")
    return replace(suite, members=tuple(replace(member, seeds=found) for member in suite.members))


def _analysis(raw: Any, default: Analysis, path: Path) -> Analysis:
    if not isinstance(raw, dict):
        raise UserError(f"{path}: analysis = {raw!r}: must be a table, [analysis]")
    _check_keys(raw, _ANALYSIS_KEYS, path, "analysis.")
    only = raw.get("only", list(default.only))
    if not isinstance(only, list):
        raise UserError(f"{path}: analysis.only = {only!r}: must be a list of names; icl-jax analyze --list has them")
    return Analysis(
        snapshots=_count(raw.get("snapshots", default.snapshots), f"{path}: analysis.snapshots"),
        rows=_count(raw.get("rows", default.rows), f"{path}: analysis.rows"),
        only=tuple(_text(name, f"{path}: analysis.only") for name in only),
    )


def _member(raw: Any, seeds: tuple[int, ...] | str, analysis: Analysis, path: Path) -> Member:
    if not isinstance(raw, dict):
        raise UserError(f"{path}: member = {raw!r}: must be a table, [[member]]")
    _check_keys(raw, _MEMBER_KEYS, path, "member.")
    if "config" not in raw:
        raise UserError(f"{path}: member.config is missing: a config that comes with icl-jax, or a path")
    config_name = _text(raw["config"], f"{path}: member.config")
    name = _text(raw.get("name", Path(config_name).stem), f"{path}: member.name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UserError(f"{path}: member.name = {name!r}: must be letters, digits, '.', '_' and '-'; it names a folder")
    file = builtin_config_path(config_name) or path.parent / config_name
    config = with_fields(load_config(file), raw.get("set", {}), f"{path}: member.set of {name}")
    own_seeds = _seeds(raw["seeds"], f"{path}: member.seeds") if "seeds" in raw else seeds
    if config.members.seeds:
        allowed = "must be empty: the seeds of a suite are its own"
        raise UserError(f"{path}: {name}: members.seeds = {config.members.seeds!r}: {allowed}")
    title = _text(raw.get("title", name), f"{path}: member.title")
    own_analysis = _analysis(raw.get("analysis", {}), analysis, path)
    return Member(name=name, title=title, config=config, seeds=own_seeds, analysis=own_analysis)


def with_fields(config: Config, changes: Any, where: str) -> Config:
    """The config with some fields changed; checked like a config's own file."""
    if not isinstance(changes, dict) or not all(
        isinstance(values, dict) or name == "intervene" for name, values in changes.items()
    ):
        raise UserError(f"{where}: {changes!r}: must be tables of fields such as {{ model = {{ n_layers = 3 }} }}")
    return build_config(merge(to_tables(config), changes), where)


def _check_keys(raw: dict[str, Any], known: set[str], path: Path, prefix: str) -> None:
    unknown = next((key for key in raw if key not in known), None)
    if unknown is not None:
        raise UserError(f"{path}: unknown key {prefix + unknown!r}: known are {', '.join(sorted(known))}")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} = {value!r}: must be a string that is not empty")
    return value


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{where} = {value!r}: must be a whole number, 0 or more")
    return value


def _seeds(value: Any, where: str) -> tuple[int, ...] | str:
    if isinstance(value, str) and value:
        try:
            return MembersConfig(seeds=value).seeds
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not isinstance(value, list) or not value or len(set(map(repr, value))) < len(value):
        allowed = "must be a list of different whole numbers, one or more, or a range ('0..99'), which is one run"
        raise UserError(f"{where} = {value!r}: {allowed}")
    return tuple(_count(seed, where) for seed in value)
