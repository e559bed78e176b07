"""Waiting for what happens, not for seconds: on a machine that does other work everything takes as long as it takes."""

import subprocess
import threading
import time
from collections.abc import Callable

# What has not happened after this never will: the suite ends in place of standing still. No test may want another.
LAST_RESORT_S = 1800.0


def wait_until(is_true: Callable[[], bool], child: "subprocess.Popen[str] | None" = None) -> None:
    """Return as soon as it is true; fails as soon as `child`, the process that should make it so, has ended without."""
    deadline_s = time.monotonic() + LAST_RESORT_S
    while not is_true():
        if child is not None and child.poll() is not None and not is_true():
            raise AssertionError(f"ended too early, with status {child.returncode}: {child.communicate()}")
        assert time.monotonic() < deadline_s, "nothing happened"
        time.sleep(0.005)


def wait_for(event: threading.Event) -> None:
    assert event.wait(LAST_RESORT_S), "nothing happened"
