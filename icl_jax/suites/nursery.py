"""A process that has imported JAX and the rest once, and forks for each command: importing takes seconds of CPU time.

A fork is clean as long as JAX has no devices yet, and only the forked process takes any.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

# Stands before the exit status, on the line that ends a command's output.
_END = "\0"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(main: Callable[[], None]) -> None:
    """Run the commands that come through standard input, a JSON list a line, one after the other.

    Their output goes to standard output; a line with the exit status ends it. `main` runs the command in sys.argv and
    ends the process. Signals are passed on to the command that runs; without one they end this process.
    """
    running = 0

    def pass_on(signum: int, _frame: object) -> None:
        if not running:
            os._exit(128 + signum)
        os.kill(running, signum)

    for signum in _SIGNALS:
        signal.signal(signum, pass_on)
    from icl_jax import process

    process.keep_freed_memory()
    process.one_blas_thread()
    process.quiet_libraries()
    import scipy.ndimage
    import scipy.optimize  # noqa: F401
    import zarr  # noqa: F401

    import icl_jax.analysis.run_measurements
    import icl_jax.train.session  # noqa: F401

    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        running = os.fork()
        if not running:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            random.seed()  # not the numbers that the command before has drawn
            sys.argv = ["-c", *json.loads(line)]
            main()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        status = os.waitstatus_to_exitcode(os.waitpid(running, 0)[1])
        running = 0
        print(f"{_END}{status}", flush=True)


class Nursery:
    """The serving process, from the side of who has commands to run."""

    def __init__(self, cores: frozenset[int] | None, environment: Mapping[str, str]) -> None:
        own_cores = f"import os; os.sched_setaffinity(0, {set(cores)}); " if cores else ""
        program = "from icl_jax.cli.main import main; from icl_jax.suites.nursery import serve; serve(main)"
        # A session of its own: a terminal's Ctrl-C comes through this process alone, once.
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore:os.fork", "-c", own_cores + program], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.send_signal = self._process.send_signal
        self.status = 0
        """Of the command that ended last."""

    def run(self, command: list[str]) -> Iterator[str]:
        """Run `icl-jax COMMAND`; the lines that it prints, as they come."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):  # it has ended; its output says why
            print(json.dumps(command), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith(_END):
                self.status = int(line.removeprefix(_END))
                return
            yield line
        self.status = self._process.wait() or 1

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        """End it; a command that runs is killed."""
        self._process.kill()
        with self._process:
            pass
