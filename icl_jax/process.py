"""Settings of the whole process that must be made before JAX or the first big allocation."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
import time
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import platformdirs

from icl_jax.config import UserError

if TYPE_CHECKING:
    import jax

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Stop glibc from giving big buffers back to the kernel at every step.

    Page faults would dominate a step on CPU: single operations ran 3 to 4 times faster with this. Other C libraries
    have no mallopt and are left alone.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**30)


def one_blas_thread() -> None:
    """Analysis takes eigenvalues of thousands of small matrices: OpenBLAS's own threads made them 8 times slower.

    Only works before NumPy is imported; a user's own setting stays.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def quiet_libraries() -> None:
    """Keep libraries' chatter out of the program's own output."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.unraisablehook = _quiet_unraisable
    sys.excepthook = _quiet_exception
    for name in ("absl", "jax._src.compilation_cache", "jax._src.compiler"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(orbax|flax|zarr|wandb)(\..*)?")
    # Another process may be writing the entry; the program is compiled again then.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def _quiet_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # Of a save or a load that failed and has raised already: futures call back into Orbax's event loop after it has
    # gone, and reads of the other arrays end in errors that nothing waits for.
    is_late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    if not is_late and getattr(unraisable.object, "__name__", "") != "_read_array_index_and_device_put":
        sys.__unraisablehook__(unraisable)


def _quiet_exception(kind: type[BaseException], error: BaseException, traceback: types.TracebackType | None) -> None:
    # gcsfs closes zarr's connections to a bucket at exit, from a loop that is not zarr's; all has been written.
    if not (isinstance(error, RuntimeError) and str(error).endswith("attached to a different loop")):
        sys.__excepthook__(kind, error, traceback)


class Interrupts:
    """Ctrl-C ends the program within seconds, wherever it is.

    Python looks at signals between two of its own instructions, and a compilation or a step may take minutes: a thread
    sees to it that the program ends all the same.
    """

    _GRACE_S = 3.0

    def __init__(self) -> None:
        self.is_patient = False
        """The first Ctrl-C is left to who has set this, to end what it is at; the next one is not."""
        self.is_told = False
        """Whether the user has been told."""

    def watch(self) -> None:
        """Begin to. Of the main thread, once in a program."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="interrupts", daemon=True).start()

    def _watch(self, reader: int) -> None:
        n_left = 1
        while received := os.read(reader, 64):
            for signum in received:
                if signum != signal.SIGINT:
                    continue
                if self.is_patient and n_left:
                    n_left = 0
                    continue
                time.sleep(self._GRACE_S)  # the main thread ends by itself, if it can
                if not self.is_told:
                    with contextlib.suppress(OSError):
                        os.write(2, b"icl-jax: interrupted\n")
                os._exit(130)


interrupts = Interrupts()


class JaxUse:
    """Which process has JAX at work: what is forked from it has its locks without its threads, and waits for ever."""

    def __init__(self) -> None:
        self._pid = 0

    def note(self) -> None:
        """Call it where JAX computes. Raises RuntimeError in a process that was forked from one that had."""
        if self._pid not in (0, os.getpid()):
            start = 'multiprocessing.get_context("spawn"), or concurrent.futures with that mp_context'
            raise RuntimeError(f"forked after JAX had begun to compute, which then waits for ever: start it by {start}")
        self._pid = os.getpid()


jax_use = JaxUse()


def end(status: int) -> NoReturn:
    """End the program. One of several processes that failed alone must not wait for the others: they wait for it."""
    jax = sys.modules.get("jax")
    if status in (1, 2) and jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def cpu_count() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process can have at most: the machine's with its swap, or what its control group allows."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, StopIteration):  # not Linux
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        total += 1024 * int(next(line.split()[1] for line in lines if line.startswith("SwapTotal:")))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max"
            total = min(total, int(Path(path).read_text()))
    return total


def configure_jax(n_cpu_devices: int) -> None:
    """Imports JAX: a device per core on CPU, and compiled programs kept from run to run."""
    import jax

    jax.config.update("jax_num_cpu_devices", n_cpu_devices)
    jax.config.update("jax_compilation_cache_dir", os.path.join(platformdirs.user_cache_dir("icl_jax"), "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def devices() -> "list[jax.Device]":
    """All devices, starting JAX's backend. Raises UserError where JAX_PLATFORMS asks for what is not there."""
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # of a platform of another name, and of one without a plugin
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise
        jax.config.update("jax_platforms", "")
        there = sorted({"cpu", jax.default_backend()})
        jax.config.update("jax_platforms", asked)
        why = "is not a platform of this machine and installation"
        allowed = f"there is {' and '.join(there)}; the environment variable may be left out"
        raise UserError(f"JAX_PLATFORMS = {asked!r}: {why}; {allowed}") from error


def compile_for_tpu() -> None:
    """Imports JAX on the CPU with a libtpu that compiles for slices that are elsewhere.

    Otherwise libtpu asks for a TPU host's metadata server, takes the machine for itself, and complains of both.
    """
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
    for name, value in (
        ("TPU_WORKER_HOSTNAMES", "localhost"), ("TPU_ACCELERATOR_TYPE", "v5litepod-16"), ("TPU_MIN_LOG_LEVEL", "3"),
        ("TPU_STDERR_LOG_LEVEL", "3"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    import jax

    jax.config.update("jax_platforms", "cpu")
