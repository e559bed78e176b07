"""Small runs, in this process and through the command line, and what two equal runs have in common."""

import contextlib
import functools
import gc
import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tyro
from etils import epath
from rich.console import Console

from icl_jax import process
from icl_jax.cli import main
from icl_jax.config import Config, MembersConfig, parse_config
from icl_jax.data import open_corpus
from icl_jax.display import StepsDisplay
from icl_jax.rundir import RunDir
from icl_jax.rundir.checkpoints import load_arrays
from icl_jax.rundir.verify import problems
from icl_jax.train import loop
from icl_jax.train.loop import Outcome, train
from icl_jax.train.probes import make_probe_fn
from icl_jax.train.start import open_or_create
from icl_jax.train.stop import StopSignal
from icl_jax.train.watch.tracker import NullTracker
from tests.compiling import QUICK
from tests.waiting import LAST_RESORT_S

TINY = """
[model]
n_layers = 2
d_model = 12
n_heads = 3
n_ctx = 17
vocab_size = 29
smeared_keys = true
[data]
held_out_rows = 10
[data.repeats]
phrase_len = 5
[train]
n_steps = 8
batch_size = 8
flush_every_s = 0.0
[optimizer]
warmup_steps = 3
[snapshots]
n_linear = 8
n_log = 0
[probes]
n_probes = 4
held_out_rows = 10
n_sequences = 2
repeat_len = 7
n_repeats = 2
[tracker]
wandb = "disabled"
every_steps = 1
"""

# Some three seconds of steps, with snapshots, probes, flushes and states all through them.
LONG = TINY.replace("n_steps = 8", "n_steps = 300").replace("flush_every_s = 0.0", "flush_every_s = 0.1")
LONG = LONG.replace("n_linear = 8\nn_log = 0", "n_linear = 30\nn_log = 20\nstate_every_s = 0.3")

CLI = (sys.executable, "-c", "from icl_jax.cli.main import main; main()")


def tiny_config(**sections: Mapping[str, Any]) -> Config:
    """TINY with some fields changed: ``tiny_config(train={"n_steps": 3})``."""
    config = parse_config(TINY)
    changed = {name: replace(getattr(config, name), **values) for name, values in sections.items()}
    return replace(config, **changed)


class TellingTracker(NullTracker):
    """Calls `seen(step)` when the loss of each step has arrived."""

    def __init__(self, seen: Callable[[int], None]) -> None:
        super().__init__("tests")
        self.seen = seen

    def log_step(self, step: int, tokens: int, scalars: Mapping[str, Any]) -> None:
        self.seen(step)


def four(**sections: Mapping[str, Any]) -> Config:
    """Four members of the tiny config, seeds 4, 1, 0 and 7."""
    sections = {"optimizer": {"clip_norm": 0.45}, **sections}
    return replace(tiny_config(**sections), members=MembersConfig(seeds="4,1,0,7"))


def train_here(
    config: Config, path: Path, *, n_devices: int = 1, stop_at: int | None = None, signum: int = 15
) -> Outcome:
    """Make or resume a run in this process; a signal comes before step `stop_at`."""
    corpus = open_corpus(config)
    run = open_or_create(str(path), config, corpus)
    stop = StopSignal()  # not entered: pytest keeps its own handlers
    if stop_at is not None and stop_at <= (run.last_state_step() or 0):
        stop.signum = signum

    def seen(step: int) -> None:
        if stop_at is not None and step + 1 >= stop_at:
            stop.signum = signum

    progress = StepsDisplay(Console(quiet=True), config.train.n_steps, config.tokens_per_step, 0)
    devices = jax.devices()[:n_devices]
    return train(run, corpus, devices, stop=stop, progress=progress, tracker=TellingTracker(seen))


def compile_once(patch: pytest.MonkeyPatch) -> None:
    """Let the runs of `train_here` that have equal configs share their compiled functions: most of their time."""
    step, probe = (
        functools.cache(loop.ParallelStep),
        functools.cache(lambda config, devices: make_probe_fn(config, open_corpus(config), list(devices))),
    )
    members = functools.cache(loop.MemberStep)
    patch.setattr(loop, "MemberStep", lambda config, devices, execution: members(config, tuple(devices), execution))
    patch.setattr(loop, "ParallelStep", lambda config, devices, execution: step(config, tuple(devices), execution))
    patch.setattr(loop, "make_probe_fn", lambda config, _corpus, devices: probe(config, tuple(devices)))


def start_cli(
    *args: str | Path, program: tuple[str, ...] = CLI, is_long: bool = False, **options: Any
) -> subprocess.Popen[str]:
    """`icl-jax ARGS` in a process of its own, or another program. One that runs for long is worth optimising."""
    checkout = str(Path(__file__).parents[2])
    paths = [checkout, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
    if is_long:
        flags = env.pop("XLA_FLAGS", "").replace(QUICK, "").strip()
        env |= {"XLA_FLAGS": flags} if flags else {}  # an empty one would be the name of a file
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    child = subprocess.Popen([*program, *map(str, args)], text=True, env=env, **pipes)
    _children.append(child)
    return child


_children: list[subprocess.Popen[str]] = []


def end_children() -> None:
    """Kill what a failed test left running, which later tests would be blamed for."""
    while _children:
        child = _children.pop()
        if child.returncode is None:
            child.kill()
            child.communicate()


def finish(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit status, stdout and stderr, once it has ended by itself."""
    try:
        out, err = child.communicate(timeout=LAST_RESORT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        raise AssertionError(f"still running after {LAST_RESORT_S} s:\n{out}\n{err}") from None
    return child.returncode, out, err


def train_long(config: Path, n_devices: int) -> Path:
    """The unbroken run of the fixture `long_config`, by the real command."""
    path = config.parent / "unbroken"
    status, out, err = finish(start_cli("train", config, "--run", path, "--devices", str(n_devices)))
    assert (status, err) == (0, ""), err
    assert "complete, 300 steps" in out
    return path


def recorded(path: Path) -> dict[str, np.ndarray]:
    """Everything in the record but the times that steps took."""
    record = RunDir.open(str(path)).load_record()
    return {str(name): array.values for name, array in record.variables.items() if name != "step_s"}


def final_state(path: Path) -> dict[str, np.ndarray]:
    run = RunDir.open(str(path))
    step = run.last_state_step()
    assert step is not None
    return run.load_state(step)


def has_snapshot(run: Path, step: int) -> bool:
    """Of this step or a later one."""
    return any(int(path.name) >= step for path in (run / "snapshots").glob("*") if path.name.isdigit())


def folder_bytes(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def assert_same_run(path: Path, unbroken: Path) -> None:
    """Equal bits: record (but for step_s), manifest, every snapshot, last state; both as good as they promise."""
    run = RunDir.open(str(path))
    assert list(problems(run)) == []  # the hashes of the snapshots are those of the manifest
    assert run.manifest.path.read_bytes() == (unbroken / "manifest.jsonl").read_bytes()
    assert {p.name for p in (path / "snapshots").iterdir()} == {p.name for p in (unbroken / "snapshots").iterdir()}
    for arrays, expected in ((recorded(path), recorded(unbroken)), (final_state(path), final_state(unbroken))):
        assert arrays.keys() == expected.keys()
        for name, values in expected.items():
            assert arrays[name].dtype == values.dtype, name
            np.testing.assert_array_equal(arrays[name], values, err_msg=name)
    leftovers = [p for p in path.rglob("*") if p.name.endswith(".partial") or "-tmp" in p.name]
    assert leftovers == []


def snapshot(path: Path, step: int) -> dict[str, np.ndarray]:
    return load_arrays(epath.Path(path) / "snapshots" / str(step))


def command(*args: str | Path) -> tuple[int, str, str]:
    """`icl-jax ARGS` in this process, which has its devices already: exit status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(process, "configure_jax", lambda _n_cpu_devices: None)
        patch.setattr(tyro, "cli", functools.partial(_without_collecting, tyro.cli))
        try:
            status = main.run([str(arg) for arg in args])
        except SystemExit as error:  # --help
            status = int(error.code or 0)
    return status, out.getvalue(), err.getvalue()


def _without_collecting(parse: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a failed save left must not be finalised while tyro parses source: Python 3.11 then fails (gh-106905)."""
    gc.disable()
    try:
        return parse(*args, **options)
    finally:
        gc.enable()


def only_line(err: str) -> str:
    """What a failed command said: one line."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("icl-jax: ")
    return lines[0]
