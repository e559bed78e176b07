"""TOML text to :class:`Config` and back."""

import difflib
import json
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_type_hints

from icl_jax.config.errors import UserError
from icl_jax.config.schema import Config


def _unknown(name: str, known: list[str], where: str) -> UserError:
    close = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"{where}: unknown key {name!r}: {hint}known are {', '.join(known)}")


def parse_config(text: str, where: str = "config") -> Config:
    """Read a config from TOML text. Raises UserError for bad TOML, unknown keys and values that cannot work."""
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of very many digits, very deep nesting
        raise UserError(f"{where}: not valid TOML: {error}") from None
    return build_config(raw, where)


def build_config(raw: dict[str, Any], where: str = "config") -> Config:
    """The config of nested dicts, a section each. Raises UserError for unknown keys and values that cannot work."""
    sections = get_type_hints(Config)
    built: dict[str, Any] = {}
    for section, values in raw.items():
        if section not in sections:
            raise _unknown(section, list(sections), where)
        if not isinstance(values, dict):
            raise UserError(f"{where}: {section} = {values!r}: must be a table, [{section}]")
        known = [f.name for f in fields(sections[section])]
        for name in values:
            if name not in known:
                raise _unknown(f"{section}.{name}", known, where)
        try:
            built[section] = sections[section](**values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    try:
        return Config(**built)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def load_config(path: str | Path) -> Config:
    """Read a config file. Raises UserError if it is missing, not a file, not UTF-8 or not a valid config."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file; a config is a TOML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the config: {error.strerror}") from None
    return parse_config(text, str(path))


def _scalar(value: bool | int | float | str) -> str:
    """A TOML scalar: JSON's, but for characters beyond 16 bits, left as they are, and DEL, escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def dump_config(config: Config) -> str:
    """Write a config as TOML with every field; ``parse_config(dump_config(c)) == c``."""
    lines = []
    for section, values in asdict(config).items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {_scalar(value)}" for name, value in values.items()]
        lines.append("")
    return "\n".join(lines)
