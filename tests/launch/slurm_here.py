"""A Slurm of this machine's own, for a while: munged, slurmctld and slurmd in a folder that is thrown away."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.waiting import wait_until

_CONF = """
ClusterName=here
SlurmctldHost={host}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=60
NodeName={host} CPUs={n_cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons, as root, and give the environment in which Slurm's commands find them."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    values = {"host": host, "folder": folder, "n_cpus": os.cpu_count()}
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(controller_port=_free_port(), node_port=_free_port(), **values))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    munge_files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    daemons = [
        ["munged", "--foreground", "--force", *(f"--{flag}={folder}/munge.{end}" for flag, end in munge_files.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "daemons.log").open("w"))
        for command in daemons:
            child = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, text=True
            )
            stack.callback(_end, child)
            time.sleep(1)
        wait_until(lambda: "idle" in _output(["sinfo", "--noheader", "--format=%T"], environment), child)
        yield environment


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def job_state(job: str, environment: dict[str, str]) -> str:
    """PENDING, RUNNING, COMPLETING, COMPLETED, ... of a job's number."""
    shown = _output(["scontrol", "--oneliner", "show", "job", job], environment)
    return shown.partition("JobState=")[2].partition(" ")[0]
