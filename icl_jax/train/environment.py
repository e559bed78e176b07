"""What a run ran on: versions, devices, processes, commit, command line."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from icl_jax.model.execution import Execution

_PACKAGES = ("icl-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "zarr", "tokenizers", "wandb")


def describe_start(step: int, devices: list[jax.Device], argv: list[str], execution: Execution) -> dict[str, Any]:
    """One entry of environment.json's "starts"."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
        "processes": jax.process_count(),
        "host": {"machine": platform.machine(), "system": platform.system()},
        "execution": asdict(execution),
        "git_commit": _git_commit(),
        "command": shlex.join(argv),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the package's own source, "+changes" where it was edited; None for an installed wheel."""
    here = Path(sys.modules["icl_jax"].__path__[0])

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if git("ls-files", "__init__.py") != "__init__.py":
            return None
        commit = git("rev-parse", "HEAD")
        return f"{commit}+changes" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None
