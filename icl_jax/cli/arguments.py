"""Arguments by tyro, with its errors cut to one line."""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional

from icl_jax.config import Config, DataConfig, UserError, load_config
from icl_jax.config.builtin import config_file
from icl_jax.config.checks import whole_number_of
from icl_jax.config.corpora import NAMES, Options, corpus_kind, corpus_name, sources
from icl_jax.config.toml import dump_inline, parse_inline

T = TypeVar("T")


class OutputError(Exception):
    """The help, which tyro prints by itself, could not be written."""


def parse(cls: type[T], args: Sequence[str], *, prog: str, description: str, default: Any = None) -> T:
    """Parse into a dataclass. Raises UserError with one line where tyro would print a box."""
    stderr = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(cls, args=list(args), prog=prog, description=description, **options)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None
    except SystemExit as error:
        if not error.code:
            raise
        raise UserError(_one_line(stderr.getvalue(), prog, args)) from None


# What tyro says, and how it reads as NAME = VALUE: WHAT IS ALLOWED.
_REWORDED = (
    (r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", r"\1 = \2: must be a whole number"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 = \2: must be a number"),
    (r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)\.", r"\2 = \1: must be one of \3"),
    (r"Missing value for argument '(\S+)'\..*", r"\1: needs a value"),
    (r"Missing from .*?: (\S+) .*", r"\1 is missing"),
    (r"Unrecognized options: (-[^\s,]+).*", r"\1: no such option"),
    (r"Unrecognized options: ([^\s,]+).*", r"\1: unexpected argument"),
)


# The box's upper and lower edge, and the rules between its parts; drawn in ASCII where the output is not UTF-8.
_RULE = re.compile(r"[╭╰].*|[ │]*[-─]{8,}[ │]*")


def _one_line(box: str, prog: str, args: Sequence[str]) -> str:
    """What tyro's error box says, on one line: its first part, and the options that it suggests."""
    parts: list[list[str]] = [[]]
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines():
        if _RULE.fullmatch(line.rstrip()):
            parts.append([])
        else:
            parts[-1].append(line.strip("│"))
    first, *others = parts[1:] or parts
    message = " ".join(" ".join(first).split()) or "cannot read the arguments"
    for pattern, words in _REWORDED:
        message = re.sub(f"^{pattern}$", words, message)
    found = [re.match(r" {4,6}(--\S+)", line) for part in others for line in part]
    suggested = [match.group(1) for match in found if match]
    if suggested and message.endswith("no such option"):
        message += f"; did you mean {' or '.join(suggested[:3])}?"
    return f"{message}{_what_to_write(message, args)}; see {prog} --help"


def _what_to_write(message: str, args: Sequence[str]) -> str:
    """Where someone wrote 1e3 for a whole number, or True behind a switch: what to write in its place."""
    if (number := re.fullmatch(r"\S+ = '(.*)': must be a whole number", message)) is not None:
        meant = whole_number_of(re.sub(r"[,\s]", "", number.group(1)))
        return "" if meant is None else f": write {meant}"
    switch = re.fullmatch(r"(.*): unexpected argument", message)
    if switch is None or switch.group(1).lower() not in ("true", "false", "yes", "no", "on", "off", "1", "0"):
        return ""
    given = [*(arg for arg, value in pairwise(args) if value == switch.group(1)), *(
        arg.removesuffix(f"={switch.group(1)}") for arg in args if arg.endswith(f"={switch.group(1)}")
    )]  # fmt: skip
    if not given or not given[0].startswith("--"):
        return ""
    section, dot, name = given[0].removeprefix("--").rpartition(".")
    name = name.removeprefix("no-")
    return f": {given[0]} takes no value: write --{section}{dot}{name} or --{section}{dot}no-{name}"


_INTERVENE = (
    'what [[intervene]] of a file says, each in braces: \'{at = "pattern", layers = 0, pattern = "previous"}\'; '
    "all that the file says are then gone"
)


def _as_arguments(config: Config) -> Config:
    """The config with the options of every corpus beside each other, ``--data.markov.order``, for tyro to read.

    Nothing is checked: what is read is turned back by :func:`_as_config`.
    """
    unchecked = {"__post_init__": lambda self: None}
    groups = {name: corpus_kind(name).options for name in NAMES if fields(corpus_kind(name).options)}
    source = Annotated[str, tyro.conf.arg(help=f"{' | '.join(sources())}")]
    more: list[Any] = [("source", source), ("options", Annotated[Options, tyro.conf.Suppress])]
    data_cls = make_dataclass(
        "Data", [*more, *groups.items()], bases=(DataConfig,), namespace=unchecked, frozen=True, kw_only=True
    )
    given = {field.name: getattr(config.data, field.name) for field in fields(config.data)}
    given |= {name: config.data.options if name == config.data.corpus else cls() for name, cls in groups.items()}
    intervene = Annotated[str, tyro.conf.arg(metavar="TABLES", help=_INTERVENE)]
    cls = make_dataclass(
        "Overrides", [("intervene", intervene)], bases=(Config,), namespace=unchecked, frozen=True, kw_only=True
    )
    for made in (data_cls, cls):  # else tyro looks for their source in all of Python's types.py, once for every field
        made.__module__ = "builtins"
    sections = {field.name: getattr(config, field.name) for field in fields(config)}
    sections["intervene"] = dump_inline(config.intervene)
    arguments: Config = cls(**sections | {"data": data_cls(**given)})
    return arguments


def _as_config(arguments: Config, shown: Config) -> Config:
    """The config that was meant. Raises UserError, also for a given option of another corpus than the source."""
    data = arguments.data
    name = corpus_name(data.source)
    for other in NAMES:
        options: Any = getattr(data, other, None)
        before = getattr(shown.data, other, None)
        if options != before and other != name:
            changed = next(f.name for f in fields(options) if getattr(options, f.name) != getattr(before, f.name))
            allowed = f"only with data.source = {other!r}, and it is {data.source!r}"
            raise UserError(f"data.{other}.{changed} = {getattr(options, changed)!r}: {allowed}")
    shared = {field.name: getattr(data, field.name) for field in fields(DataConfig)}
    chosen = {"options": getattr(data, name, Options())}
    sections = {field.name: getattr(arguments, field.name) for field in fields(Config)}
    sections["intervene"] = parse_inline(sections["intervene"])
    return Config(**sections | {"data": DataConfig(**shared | chosen)})


@dataclass(frozen=True, kw_only=True)
class ConfigArgs:
    """A config file and overrides of its fields."""

    config: Annotated[Positional[str], tyro.conf.arg(metavar="CONFIG")]
    """A TOML file, or the name of one that comes with icl-jax, such as repeats-2l."""
    overrides: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)
    """Fields of the config."""


def find_config(name: str) -> tuple[Path, Config]:
    """The config file that a command names: a path, or the name of one that comes with icl-jax."""
    path = config_file(name)
    return path, load_config(path)


def _config_of_file(name: str) -> Config:
    return find_config(name)[1]


def parse_with_config(
    cls: type[T], args: Sequence[str], *, prog: str, description: str, load: Callable[[str], Config] = _config_of_file,
    first: str = "the config file",
) -> T:  # fmt: skip
    """Parse arguments whose first is a config: the file gives the defaults that the others override.

    `cls` is a dataclass with fields `config` and `overrides`. `load`: from the first argument, which `first` names, to
    the config, where that is no file. Help without it shows the built-in defaults.
    """
    required = {
        field.name: tyro.MISSING for field in fields(cls)  # type: ignore[arg-type]
        if field.name != "config" and field.default is MISSING and field.default_factory is MISSING
    }  # fmt: skip
    if not args or args[0].startswith("-"):
        if not any(arg in ("-h", "--help") for arg in args):
            raise UserError(f"{first} must come first; see {prog} --help")
        default: Any = cls(**required | {"config": tyro.MISSING, "overrides": _as_arguments(Config())})
        return parse(cls, args, prog=prog, description=description, default=default)
    shown = _as_arguments(load(args[0]))
    default = cls(**required | {"config": args[0], "overrides": shown})
    read: Any = parse(cls, args, prog=prog, description=description, default=default)
    parsed: T = replace(read, overrides=_as_config(read.overrides, shown))
    return parsed
