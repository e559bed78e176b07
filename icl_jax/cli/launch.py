"""`icl-jax launch`: the same training command on a TPU slice, a cluster or several local processes.

The files of launch/ are templates, filled in and handed to the target's own tool: gcloud, kubectl, sky or sbatch. The
job holds the resolved config as text, so that it needs nothing but icl_jax on the far machine, and what is queued again
after a preemption is what was launched. All state is in the run directory: the same command resumes.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from json import dumps
from math import prod
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from icl_jax import __version__
from icl_jax.cli.arguments import ConfigArgs
from icl_jax.config import UserError
from icl_jax.config.builtin import packaged_folder
from icl_jax.config.toml import dump_config
from icl_jax.config.tpus import TPUS, Tpu
from icl_jax.launchers import local as local_processes

Target = Literal["queued-resources", "gke", "skypilot", "slurm", "local"]


@dataclass(frozen=True, kw_only=True)
class LaunchArgs(ConfigArgs):
    """What is launched, and where."""

    on: Target = "local"
    """Where: a Cloud TPU slice of your own, a GKE cluster, SkyPilot's clouds, a Slurm cluster, processes here."""
    run: str = ""
    """Run directory: gs://BUCKET/... in a cloud, whose machines go away; on slurm and local also a path."""
    name: str = ""
    """Name of the job. Default: the config's."""
    topology: str = ""
    """queued-resources, gke, skypilot: TPU slice, such as v5e:4x4. Default: the config's launch.topology."""
    accelerator: str = ""
    """skypilot, slurm: GPUs of each host, such as H100:8."""
    hosts: int = 1
    """skypilot with --accelerator, slurm: hosts."""
    processes: int = 0
    """slurm without --accelerator, local: processes over all hosts. Default: one on each host."""
    spot: bool = False
    """queued-resources, gke, skypilot: cheaper machines that can be taken away; training goes on on the next ones."""
    image: str = ""
    """gke: container image, made from launch/Dockerfile."""
    package: str = ""
    """queued-resources, skypilot: what pip installs. Default: this version of icl-jax."""
    dry_run: bool = False
    """Print the files and the command, and run nothing."""


# The program that each target needs.
_TOOL = {"queued-resources": "gcloud", "gke": "kubectl", "skypilot": "sky", "slurm": "sbatch"}


@dataclass(frozen=True, slots=True)
class _Slice:
    tpu: Tpu
    topology: str
    n_chips: int

    @property
    def chips_per_host(self) -> int:
        return min(self.n_chips, 4)

    @property
    def accelerator_type(self) -> str:
        return f"{self.tpu.accelerator_type}-{self.n_chips * self.tpu.n_cores}"


def _parse_topology(text: str) -> _Slice:
    generation, _, topology = text.partition(":")
    tpu = TPUS.get(generation)
    is_known = tpu is not None and re.fullmatch(r"[1-9]\d{0,2}" + r"x[1-9]\d{0,2}" * (tpu.n_axes - 1), topology)
    n_chips = prod(int(n) for n in topology.split("x")) if is_known else 0
    if tpu is None or (n_chips not in (1, 2) and n_chips % 4):
        raise UserError(f"--topology = {text!r}: must be {', '.join(TPUS)} and the slice, such as v5e:4x4 or v5p:2x2x4")
    if not is_known:
        example = "x".join(["2", "2", "4"][-tpu.n_axes :])
        raise UserError(
            f"--topology = {text!r}: a slice of {generation} has {tpu.n_axes} axes, such as {generation}:{example}"
        )
    return _Slice(tpu, topology, n_chips)


def _check(args: LaunchArgs, name: str) -> None:
    for field in ("run", "image", "package"):
        if not getattr(args, field).isprintable():
            raise UserError(f"--{field} = {getattr(args, field)!r}: must be printable characters")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        allowed = "must be at most 40 lower-case letters, digits and hyphens, a letter first"
        raise UserError(f"--name = {name!r}: {allowed}")
    for field in ("hosts", "processes"):
        least = 1 if field == "hosts" else 0
        if getattr(args, field) < least:
            raise UserError(f"--{field} = {getattr(args, field)}: must be {least} or more")
    is_cloud = args.on in ("queued-resources", "gke", "skypilot")
    takes = {
        "topology": is_cloud,
        "accelerator": args.on in ("skypilot", "slurm"),
        "hosts": args.on == "slurm" or (args.on == "skypilot" and not args.topology),
        "processes": args.on == "local" or (args.on == "slurm" and not args.accelerator),
        "spot": is_cloud,
        "image": args.on == "gke",
        "package": args.on in ("queued-resources", "skypilot"),
    }
    for field, is_taken in takes.items():
        value = getattr(args, field)
        if value != LaunchArgs.__dataclass_fields__[field].default and not is_taken:
            raise UserError(f"--{field} = {value!r}: not with --on {args.on}{' and --topology' * (field == 'hosts')}")
    if is_cloud and not re.fullmatch(
        r"gs://[^/]+/[^*?#\[\]]*[^*?#\[\]/]", args.run
    ):  # gcloud takes *?# and [] for patterns
        raise UserError(f"--run = {args.run!r}: must be gs://BUCKET/... with --on {args.on}, whose machines go away")
    if args.on in ("queued-resources", "gke") and not args.topology:
        raise UserError(f"--topology is missing: --on {args.on} needs a slice, such as v5e:4x4")
    if args.on == "skypilot" and bool(args.topology) == bool(args.accelerator):
        raise UserError("--on skypilot needs one of --topology, such as v5e:4x4, and --accelerator, such as H100:8")
    if args.on == "gke" and not args.image:
        raise UserError("--image is missing: --on gke needs a container image, made from launch/Dockerfile")
    if args.accelerator and not re.fullmatch(r"[A-Za-z0-9_.-]+:[1-9]\d{0,2}", args.accelerator):
        raise UserError(f"--accelerator = {args.accelerator!r}: must be TYPE:COUNT, such as H100:8")


def _template(name: str) -> str:
    """Text of a file of launch/."""
    return (packaged_folder("launch") / name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
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


def _config_text(args: LaunchArgs) -> str:
    """The resolved config in printable ASCII: every shell's here-document and YAML's block text hold it unchanged."""
    text = dump_config(args.overrides).strip()
    return re.sub(r"[^\x00-\x7e]", lambda match: f"\\U{ord(match[0]):08X}", text)


def _yaml(value: object) -> str:
    """A YAML value in one line: JSON is YAML, for printable text as it stands."""
    return dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What would run."""

    files: dict[str, str]
    """Text by name, in the folder of the launch."""
    commands: list[list[str]]


def _folder(name: str) -> Path:
    """Where the files of a launch are written."""
    return Path("runs") / f"{name}.launch"


def _plan(args: LaunchArgs, name: str) -> _Plan:
    tpu = _parse_topology(args.topology) if args.topology else None
    if tpu:
        args.overrides.train.rows_per_device(tpu.n_chips)  # refused here, and not on a slice that costs money
    kind, _, count = args.accelerator.partition(":")
    folder = _folder(name)
    run = args.run or str(Path("runs") / Path(args.config).stem)
    extras = "tpu,gcs" if tpu else "cuda,gcs"
    values = {
        "name": name,
        "config": _config_text(args),
        "run": shlex.quote(run),
        "package": shlex.quote(args.package or f"icl-jax[{extras}]=={__version__}"),
        "hosts": str(args.hosts),
        "folder": str(folder),
    }
    if args.on == "queued-resources":
        assert tpu is not None
        values["accelerator_type"] = tpu.accelerator_type
        values["runtime_version"] = tpu.tpu.runtime_version
        values["spot_flag"] = "--spot \\" if args.spot else ""
        files = {file: _fill(_template(file), values) for file in ("queued-resources.sh", "startup.sh")}
        return _Plan(files, [["bash", str(folder / "queued-resources.sh")]])
    if args.on == "gke":
        assert tpu is not None
        selector = {
            "cloud.google.com/gke-tpu-accelerator": tpu.tpu.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
        }
        if args.spot:
            selector["cloud.google.com/gke-spot"] = "true"
        values["node_selector"] = _yaml(selector)
        values["image"] = _yaml(args.image)
        for text in ("config", "run"):  # Kubernetes reads $(NAME) and $$ in a container's args
            values[text] = values[text].replace("$", "$$")
        values["chips_per_host"] = str(tpu.chips_per_host)
        values["hosts"] = str(tpu.n_chips // tpu.chips_per_host)
        file = "gke-jobset.yaml"
        return _Plan({file: _fill(_template(file), values)}, [["kubectl", "create", "--filename", str(folder / file)]])
    if args.on == "skypilot":
        # One "node" is the whole slice to SkyPilot, whose hosts find each other by themselves.
        values["accelerators"] = _yaml(f"tpu-{tpu.accelerator_type}:1" if tpu else args.accelerator)
        values["accelerator_args"] = f"accelerator_args: {{runtime_version: {tpu.tpu.runtime_version}}}" if tpu else ""
        values["spot"] = _yaml(args.spot)
        address = '"$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):8476"'
        own = f'--coordinator {address} --processes "$SKYPILOT_NUM_NODES" --process-id "$SKYPILOT_NODE_RANK"'
        values["join"] = "--coordinator auto" if tpu else own
        file = "skypilot.yaml"
        # By name: SkyPilot takes the key from this process's environment.
        secret = ["--secret", "WANDB_API_KEY"] if "WANDB_API_KEY" in os.environ else []
        return _Plan(
            {file: _fill(_template(file), values)},
            [["sky", "jobs", "launch", "--yes", *secret, str(folder / file)]],
        )
    if args.on == "slurm":
        # One process for each GPU, as JAX under Slurm expects.
        values["gpus"] = (
            f"#SBATCH --gpus-per-node={args.accelerator}\n#SBATCH --ntasks-per-node={count}" if kind else ""
        )
        values["processes"] = str(args.hosts * int(count) if kind else args.processes or args.hosts)
        file = "slurm.sbatch"
        return _Plan({file: _fill(_template(file), values)}, [["sbatch", str(folder / file)]])
    n_processes = args.processes or 1
    train = ["icl-jax", "train", str(folder / "config.toml"), "--run", run]
    return _Plan({"config.toml": values["config"] + "\n"}, local_processes.commands(train, n_processes))


def launch(args: LaunchArgs, console: Console) -> int:
    """Hand the job to the target's tool and return its exit status, or print what would be handed over.

    Raises UserError for options that the target has no use for or lacks, where the tool is not installed, and where the
    batch does not divide evenly over the slice.
    """
    if args.on in ("queued-resources", "gke", "skypilot") and not args.accelerator and not args.topology:
        args = replace(args, topology=args.overrides.launch.topology)
    name = args.name or re.sub(r"[^a-z0-9]+", "-", Path(args.config).stem.lower()).strip("-")
    _check(args, name)
    plan = _plan(args, name)
    if args.dry_run:
        for file, text in plan.files.items():
            console.out(f"# {_folder(name) / file}\n{text}", highlight=False)
        for command in plan.commands:
            console.out(f"$ {shlex.join(command)}", highlight=False)
        return 0
    if args.on != "local":
        _require(_TOOL[args.on], args.on)
    _folder(name).mkdir(parents=True, exist_ok=True)
    for file, text in plan.files.items():
        (_folder(name) / file).write_text(text, encoding="utf-8")
    if args.on == "local":
        return local_processes.run(plan.commands, console)
    (command,) = plan.commands
    return subprocess.run(command, check=False).returncode


def _require(tool: str, target: str) -> None:
    if shutil.which(tool) is None:
        raise UserError(f"{tool}: no such program here; --on {target} calls it, and --dry-run does without")


TOOL_VERBS = {"list": "List jobs", "logs": "Show a job's output", "stop": "Stop a job; its run can be resumed"}


@dataclass(frozen=True, kw_only=True)
class ToolArgs:
    """Arguments of `icl-jax launch list|logs|stop`."""

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")] = ""
    """Name of the job, for logs and stop."""
    on: Target
    """Where it was launched."""
    dry_run: bool = False
    """Print the command, and run nothing."""


def _tool_command(verb: str, on: Target, name: str) -> list[str]:
    queued_resources = ["gcloud", "compute", "tpus", "queued-resources"]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", name, "--worker=0"]
    commands: dict[tuple[str, str], list[str]] = {
        ("queued-resources", "list"): [*queued_resources, "list"],
        ("queued-resources", "logs"): [*ssh, "--command=sudo journalctl --follow --unit google-startup-scripts"],
        ("queued-resources", "stop"): [*queued_resources, "delete", name, "--force", "--quiet"],
        ("gke", "list"): ["kubectl", "get", "jobsets"],
        ("gke", "logs"): [
            "kubectl",
            "logs",
            "--follow",
            "--tail=-1",
            f"--selector=jobset.sigs.k8s.io/jobset-name={name}",
        ],
        ("gke", "stop"): ["kubectl", "delete", "jobset", name],
        ("skypilot", "list"): ["sky", "jobs", "queue"],
        ("skypilot", "logs"): ["sky", "jobs", "logs", "--name", name],
        ("skypilot", "stop"): ["sky", "jobs", "cancel", "--yes", "--name", name],
        ("slurm", "list"): ["squeue", "--me"],
        ("slurm", "logs"): ["tail", "-n", "+1", "-F", str(_folder(name) / "job.log")],
        ("slurm", "stop"): ["scancel", "--me", "--name", name],
    }
    return commands[on, verb]


def call_tool(verb: str, args: ToolArgs) -> int:
    """Call the target's own command for `verb`, one of TOOL_VERBS, and return its exit status. Raises UserError."""
    if args.on == "local":
        raise UserError(f"--on local: nothing to {verb}; its processes end with the command that started them")
    if verb != "list" and not re.fullmatch(r"[a-z][a-z0-9-]*", args.name):
        raise UserError(f"NAME = {args.name!r}: must be the name of a job, see icl-jax launch list --on {args.on}")
    command = _tool_command(verb, args.on, args.name)
    if args.dry_run:
        print(f"$ {shlex.join(command)}")
        return 0
    _require(command[0], args.on)
    return subprocess.run(command, check=False).returncode
