"""What a launch target is: its flags, and from a job its files and the command that takes them.

Each target is one file of this folder, and a line of the table. The files of launch/ are templates, filled in and
handed to the target's own tool. The job holds the resolved config as text, so that it needs nothing but icl_jax on the
far machine, and what is queued again after a preemption is what was launched. All state is in the run directory: the
same command resumes.
"""

import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from json import dumps
from pathlib import Path
from typing import Any

from rich.console import Console

from icl_jax import __version__
from icl_jax.config import Config, UserError
from icl_jax.config.builtin import packaged_folder
from icl_jax.config.checks import require
from icl_jax.config.toml import dump_config


def flag(default: Any, help: str, allowed: str = "", is_allowed: Callable[[Any], bool] = lambda value: True) -> Any:
    """A field of Options. Flags of one name are one flag, with one type and default, and each target's own help."""
    return field(default=default, metadata={"help": help, "allowed": allowed, "is_allowed": is_allowed})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags that a target takes besides those of every launch; --spot-price is the field spot_price."""


@dataclass(frozen=True, kw_only=True)
class PackageOptions(Options):
    """Of targets that install icl_jax on the far machine."""

    package: str = flag("", "what pip installs. Default: this version of icl-jax.")

    def requirement(self, extra: str) -> str:
        """What pip installs, as a word of a shell."""
        return shlex.quote(self.package or f"icl-jax[{extra},gcs]=={__version__}")


@dataclass(frozen=True, kw_only=True)
class GpuOptions(Options):
    """Of targets that have hosts with GPUs."""

    accelerator: str = flag(
        "", "GPUs of each host, such as H100:8.", "must be TYPE:COUNT, such as H100:8",
        lambda value: re.fullmatch(r"[A-Za-z0-9_.-]+:[1-9]\d{0,2}", value) is not None,
    )  # fmt: skip
    hosts: int = flag(1, "hosts; a TPU slice has its own.", "must be 1 or more", lambda value: value >= 1)


@dataclass(frozen=True, kw_only=True)
class ProcessOptions(Options):
    """Of targets that start processes without GPUs of their own."""

    processes: int = flag(
        0, "processes over all hosts, without --accelerator. Default: one on each host.", "must be 0 or more",
        lambda value: value >= 0,
    )  # fmt: skip


def launch_folder(name: str) -> Path:
    """Where the files of the launch of that name are written."""
    return Path("runs") / f"{name}.launch"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is launched."""

    on: str
    """The target's name."""
    name: str
    run: str
    """Run directory."""
    config: Config

    @property
    def folder(self) -> Path:
        return launch_folder(self.name)

    @property
    def quoted_run(self) -> str:
        """The run directory as a word of a shell."""
        return shlex.quote(self.run)

    @property
    def config_text(self) -> str:
        """The config in printable ASCII: every shell's here-document and YAML's block text hold it unchanged."""
        text = dump_config(self.config).strip()
        return re.sub(r"[^\x00-\x7e]", lambda match: f"\\U{ord(match[0]):08X}", text)

    def fill(self, file: str, **values: str) -> str:
        """The text of a file of launch/, with values for its {{names}}, besides name, config, run and folder."""
        template = (packaged_folder("launch") / file).read_text(encoding="utf-8")
        own = {"name": self.name, "config": self.config_text, "run": self.quoted_run, "folder": str(self.folder)}
        return fill(template, own | values)


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values for the {{names}}. One alone on its line keeps its indent on every line, and vanishes if empty."""
    lines: list[str] = []
    for line in template.splitlines():
        alone = re.fullmatch(r"( *)\{\{(\w+)\}\}", line)
        if alone:
            indent, name = alone.groups()
            lines += [f"{indent}{part}".rstrip() for part in values[name].splitlines()]
        else:
            lines.append(re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], line))
    return "\n".join(lines) + "\n"


def yaml(value: object) -> str:
    """A YAML value in one line: JSON is YAML, for printable text as it stands."""
    return dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """What would run."""

    files: dict[str, str]
    """Text by name, in the folder of the launch."""
    commands: list[list[str]]


def call(commands: list[list[str]], _console: Console) -> int:
    """Hand the one command over, and return its exit status."""
    (command,) = commands
    return subprocess.run(command, check=False).returncode


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A place where a run can be started."""

    name: str
    where: str
    """What it is, in the help of --on."""
    options: type[Options] = Options
    plan: Callable[[Job, Any], Plan]
    """From a job and such options. Raises UserError for those that do not go together."""
    tool: str = ""
    """The program that it needs; empty: none."""
    verbs: Callable[[str], dict[str, list[str]]] | None = None
    """From a job's name to the tool's own commands for list, logs and stop. None: there are none."""
    in_bucket: bool = False
    """Its machines go away, so that a run directory must be in a bucket."""
    run: Callable[[list[list[str]], Console], int] = call
    """Run the plan's commands."""

    def read(self, flags: Mapping[str, tuple[Any, Any]]) -> Options:
        """Its options, of value and default of all targets' flags. Raises UserError where another's is given."""
        own = {one.name: one for one in fields(self.options)}
        for name, (value, default) in flags.items():
            shown = f"--{name.replace('_', '-')}"
            if value == default:
                continue
            require(name in own, shown, value, f"not with --on {self.name}")
            require(not isinstance(value, str) or value.isprintable(), shown, value, "must be printable characters")
            meta = own[name].metadata
            require(meta["is_allowed"](value), shown, value, meta["allowed"])
        return self.options(**{name: flags[name][0] for name in own})

    def job(self, name: str, run: str, config: Config, config_stem: str) -> Job:
        """The job; an empty name or run is the config's. Raises UserError for what the target cannot take."""
        require(run.isprintable(), "--run", run, "must be printable characters")
        name = name or re.sub(r"[^a-z0-9]+", "-", config_stem.lower()).strip("-")
        allowed = "must be at most 40 lower-case letters, digits and hyphens, a letter first"
        require(re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name) is not None, "--name", name, allowed)
        # gcloud takes *?# and [] for patterns.
        if self.in_bucket and not re.fullmatch(r"gs://[^/]+/[^*?#\[\]]*[^*?#\[\]/]", run):
            raise UserError(f"--run = {run!r}: must be gs://BUCKET/... with --on {self.name}, whose machines go away")
        return Job(on=self.name, name=name, run=run or str(Path("runs") / config_stem), config=config)
