"""TOML text to :class:`Config` and back."""

import json
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from icl_jax.config.builtin import builtin_config_names, builtin_config_path
from icl_jax.config.corpora import NAMES, corpus_kind
from icl_jax.config.errors import UserError
from icl_jax.config.interventions import Intervention, read, to_table
from icl_jax.config.members import gather
from icl_jax.config.schema import Config
from icl_jax.config.tables import merge, split_options, to_tables, unknown
from icl_jax.config.what_it_is import check_readable


def parse_config(text: str, where: str = "config") -> Config:
    """Read a config from TOML text. Raises UserError for bad TOML, unknown keys and values that cannot work."""
    return build_config(_parse(text, where), where)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of very many digits, very deep nesting
        raise UserError(f"{where}: not valid TOML: {error}") from None


def build_config(raw: dict[str, Any], where: str = "config") -> Config:
    """The config of nested dicts, a section each. Raises UserError for unknown keys and values that cannot work."""
    try:
        return Config(**{name: _section(name, values) for name, values in raw.items()})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _section(name: str, values: Any) -> Any:
    sections = get_type_hints(Config)
    if name not in sections:
        raise unknown(name, list(sections))
    if name == "intervene":
        return read(values)
    if not isinstance(values, dict):
        raise UserError(f"{name} = {values!r}: must be a table, [{name}]")
    given = {"data": split_options, "members": gather}.get(name, dict)(values)
    known = [field.name for field in fields(sections[name])]
    for key in given:
        if key not in known:
            raise unknown(f"{name}.{key}", known)
    return sections[name](**given)


def field_types() -> dict[str, Any]:
    """Type of every field by its full name, such as model.n_layers; of every corpus, data.markov.order."""
    sections = get_type_hints(Config)
    del sections["intervene"]
    sections |= {f"data.{name}": corpus_kind(name).options for name in NAMES}
    return {
        f"{section}.{name}": annotation
        for section, cls in sections.items()
        for name, annotation in get_type_hints(cls).items()
        if name != "options"
    }


def load_config(path: str | Path) -> Config:
    """Read a config file and what it extends. Raises UserError if it is missing, not UTF-8 or not a valid config."""
    tables: dict[str, Any] = {}
    for file in reversed(config_chain(path)):
        tables = merge(tables, {name: value for name, value in _read(file).items() if name != "extends"})
    return build_config(tables, str(path))


def config_chain(path: str | Path) -> list[Path]:
    """The file, the one that it extends, and so on to the last.

    ``extends = "paper-base"`` names a config that comes with icl-jax, or a base of configs/bases; a name that ends in
    .toml is a path beside the file. Raises UserError for one that is not there, and where files extend each other.
    """
    chain = [Path(path)]
    while (name := _read(chain[-1]).get("extends")) is not None:
        where = f"{chain[-1]}: extends = {name!r}"
        if not isinstance(name, str):
            raise UserError(f"{where}: must be the name of a config, or a path that ends in .toml")
        base = chain[-1].parent / name if name.endswith(".toml") else builtin_config_path(name, bases=True)
        if base is None:
            known = ", ".join(builtin_config_names(bases=True))
            raise UserError(f"{where}: no such config; there are {known}, or give a path that ends in .toml")
        if base.resolve() in [file.resolve() for file in chain]:
            raise UserError(f"{where}: is extended by it; files must not extend each other in a circle")
        chain.append(base)
    return chain


def _read(path: Path) -> dict[str, Any]:
    check_readable(path, f"{path}: cannot read the config")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file; a config is a TOML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the config: {error.strerror}") from None
    return _parse(text, str(path))


def _value(value: bool | int | float | str | tuple[int | str, ...]) -> str:
    """A TOML scalar or list of them: JSON's, but for characters beyond 16 bits, left as they are, and DEL, escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def dump_inline(interventions: tuple[Intervention, ...]) -> str:
    """Interventions as they are given on a command line: ``{what = "zero", at = "z", layers = [0]}, {...}``."""
    tables = (", ".join(f"{name} = {_value(value)}" for name, value in to_table(one).items()) for one in interventions)
    return ", ".join(f"{{{table}}}" for table in tables)


def parse_inline(text: str) -> tuple[Intervention, ...]:
    """The interventions of such a text. Raises UserError."""
    return read(_parse(f"intervene = [{text}]", f"--intervene = {text!r}").get("intervene"))


def dump_config(config: Config) -> str:
    """Write a config as TOML, every field, members only of many; ``parse_config(dump_config(c)) == c``."""
    lines = []
    for section, values in to_tables(config).items():
        if section == "members" and not config.members:
            continue  # as the file of a run that never heard of members
        if section == "intervene":
            for one in values:
                lines += ["[[intervene]]", *(f"{name} = {_value(value)}" for name, value in one.items()), ""]
            continue
        tables = {name: value for name, value in values.items() if isinstance(value, dict)}
        plain = {name: value for name, value in values.items() if name not in tables}
        for header, table in {section: plain, **{f"{section}.{name}": table for name, table in tables.items()}}.items():
            lines += [f"[{header}]", *(f"{name} = {_value(value)}" for name, value in table.items()), ""]
    return "\n".join(lines)
