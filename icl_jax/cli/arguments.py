"""Arguments by tyro, with its errors cut to one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional

from icl_jax.config import Config, UserError, load_config
from icl_jax.config.builtin import builtin_config_path

T = TypeVar("T")


def parse(cls: type[T], args: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Parse into a dataclass. Raises UserError with one line where tyro would print a box."""
    stderr = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(cls, args=list(args), prog=prog, description=description, **options)
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(_one_line(stderr.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """The words of tyro's error box, without its frame and its pointers to --help."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"[│╭╮╰╯─┃┏┓┗┛━|]+", " ", line).strip() for line in text.splitlines()]
    words: list[str] = []
    for line in lines:
        if line.startswith(("For full helptext", "Arguments similar to", "Perhaps you meant")):
            break
        if line and line not in ("Parsing error", "Unrecognized options", "Invalid value"):
            words.append(line)
    message = " ".join(" ".join(words).split()) or "cannot read the arguments"
    return f"{message}; see {prog} --help"


@dataclass(frozen=True, kw_only=True)
class ConfigArgs:
    """A config file and overrides of its fields."""

    config: Positional[str]
    """A TOML file, or the name of one that comes with icl-jax, such as repeats-2l."""
    overrides: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Fields of the config."""


def find_config(name: str) -> tuple[Path, Config]:
    """The config file that a command names: a path, or the name of one that comes with icl-jax."""
    path = Path(name)
    if not path.exists() and path.suffix != ".toml" and len(path.parts) == 1:
        path = builtin_config_path(name) or path
        if not path.exists():
            raise UserError(f"{name}: no such config file, and icl-jax comes with none of that name")
    return path, load_config(path)


def parse_with_config(cls: type[T], args: Sequence[str], *, prog: str, description: str) -> T:
    """Parse arguments whose first is a config: the file gives the defaults that the others override.

    `cls` is a dataclass with fields `config` and `overrides`. Help without a config shows the built-in defaults.
    """
    if not args or args[0].startswith("-"):
        if any(arg in ("-h", "--help") for arg in args):
            return parse(cls, args, prog=prog, description=description)
        raise UserError(f"the config file must come first; see {prog} --help")
    _, config = find_config(args[0])
    with_defaults = cls(config=args[0], overrides=config)  # type: ignore[call-arg]
    return parse(cls, args, prog=prog, description=description, default=with_defaults)
