"""10,000 steps of a small model on two host devices, watched for a hang. `make soak`.

XLA's all-reduce between host devices can deadlock when several steps are in flight; the loop therefore waits for each
step there. This runs the real command and fails if no step ends for a minute. (The seconds are a watchdog's, not a
claim of speed.)
"""

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Args:
    """How long to soak."""

    steps: int = 10_000
    """Training steps."""
    patience_s: float = 60.0
    """Seconds without output that count as a hang; the command prints a line about every 10 s."""
    run: Path = Path("runs/soak")
    """Run directory, replaced."""


def main(args: Args) -> int:
    """Return 0 if every step ended."""
    shutil.rmtree(args.run, ignore_errors=True)
    command = [sys.executable, "-c", "from icl_jax.cli.main import main; main()", "train", "smoke"]
    command += ["--run", str(args.run), "--devices", "2", "--train.n-steps", str(args.steps)]
    start_s = last_s = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None

    def watch() -> None:
        while child.poll() is None:
            if time.monotonic() - last_s > args.patience_s:
                print(f"no output for {args.patience_s:.0f} s: hung", flush=True)
                child.kill()
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()
    for line in child.stdout:
        last_s = time.monotonic()
        print(line, end="", flush=True)
    status = child.wait()
    print(f"exit status {status} after {time.monotonic() - start_s:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
