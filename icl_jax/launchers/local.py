"""Several processes of one training run on this machine, joined over the loopback interface."""

import signal
import socket
import subprocess
import threading
import time

from rich.console import Console

from icl_jax.config import UserError
from icl_jax.display import say
from icl_jax.launchers.target import Job, Plan, ProcessOptions, Target
from icl_jax.suites.jobs import device_slots, start

# A process that waits for one that died does not hear SIGTERM: it looks for signals between steps.
_GRACE_S = 20.0


def _plan(job: Job, options: ProcessOptions) -> Plan:
    n_processes = options.processes or 1
    train = ["icl-jax", "train", str(job.folder / "config.toml"), "--run", job.run]
    files = {"config.toml": f"{job.config_text}\n"}
    if n_processes == 1:
        return Plan(files, [train])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(n_processes)]
    return Plan(files, [[*train, *shared, "--process-id", str(i)] for i in range(n_processes)])


def _run(commands: list[list[str]], console: Console) -> int:
    """Run the processes side by side, each on devices of its own, and return the exit status of the first that failed.

    Output goes to the console, signals to all processes. When one fails the others are ended within `_GRACE_S`.
    Raises UserError where there are fewer devices than processes.
    """
    slots = device_slots(len(commands))
    if len(slots) < len(commands):
        raise UserError(f"--processes = {len(commands)}: must be at most {len(slots)}, the devices or cores here")
    children = [start(command[1:], slot) for command, slot in zip(commands, slots, strict=False)]

    def pass_on(signum: int, _frame: object) -> None:
        for child in children:
            child.send_signal(signum)

    before = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    readers = [threading.Thread(target=_show, args=(i, child, console)) for i, child in enumerate(children)]
    for reader in readers:
        reader.start()
    try:
        return _wait(children, console)
    finally:
        for child in children:
            child.kill()  # nothing, where it has ended
        for reader in readers:
            reader.join()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _show(i: int, child: subprocess.Popen[str], console: Console) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        say(console, f"[{i}] {line.rstrip()}")


def _wait(children: list[subprocess.Popen[str]], console: Console) -> int:
    failed: tuple[int, int] | None = None
    deadline_s = 0.0
    while any(child.poll() is None for child in children):
        if failed is None:
            failed = _first_failed(children)
            if failed is not None:
                others = "ending the others, whose state is saved as of their last save"
                say(console, f"process {failed[0]} ended with status {failed[1]}: {others}")
                deadline_s = time.monotonic() + _GRACE_S
                for child in children:
                    child.terminate()
        elif time.monotonic() > deadline_s:
            for child in children:
                child.kill()
        time.sleep(0.1)
    failed = failed or _first_failed(children)
    return failed[1] if failed else 0


def _first_failed(children: list[subprocess.Popen[str]]) -> tuple[int, int] | None:
    """Number and exit status of a process that failed; 128 + N where signal N killed it, as a shell has it."""
    for i, child in enumerate(children):
        status = child.poll()
        if status:
            return i, 128 - status if status < 0 else status
    return None


TARGET = Target(name="local", where="processes here", options=ProcessOptions, plan=_plan, run=_run)
