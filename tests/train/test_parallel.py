"""The same numbers from 1, 2 and 8 devices, pmap and mesh, one and two processes."""

import contextlib
import dataclasses
import functools
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from icl_jax.config import Config, MembersConfig, UserError
from icl_jax.data import open_corpus, read_batches
from icl_jax.rundir import RunDir
from icl_jax.rundir.verify import problems
from icl_jax.train.parallel import ParallelStep, sharded_axes
from icl_jax.train.session import _HEARTBEAT_S
from icl_jax.train.step import init_state, train_step
from tests.train.runs import (
    CLI,
    TINY,
    assert_same_run,
    final_state,
    finish,
    has_snapshot,
    recorded,
    snapshot,
    start_cli,
    tiny_config,
    train_here,
)
from tests.waiting import wait_until

N_STEPS = 50


@functools.cache
def _config(**train: Any) -> Config:
    return tiny_config(train={"n_steps": N_STEPS, "batch_size": 16, **train})


@functools.cache
def _curve(config: Config, n_devices: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Loss [step, position], gradient norm [step] and the last parameters."""
    traced: list[Any] = []

    def tracing(*args: Any, **kwargs: Any) -> Any:
        traced.append(args)
        return train_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icl_jax.train.parallel.train_step", tracing)
        parallel = ParallelStep(config, jax.devices()[:n_devices])
    state = parallel.put_state(init_state(config))
    losses, norms = [], []
    with read_batches(open_corpus(config), seed=config.data.seed, batch_size=config.train.batch_size) as batches:
        for _ in range(N_STEPS):
            state, metrics = parallel.step(state, parallel.put_rows(next(batches)))
            losses.append(np.asarray(metrics.loss_T))
            norms.append(np.asarray(metrics.grad_norm))
    assert len(traced) == 1
    return np.stack(losses), np.stack(norms), parallel.to_host(state.params)


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """An entry for each program that is lowered meanwhile, whether or not a cache then has it compiled."""
    lowered: list[str] = []

    def listen(event: str, *_args: Any, **_more: Any) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            lowered.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield lowered
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize(
    ("n_devices", "fields"),
    [
        (2, {}),
        (8, {}),
        (1, {"accum_steps": 4}),
        (2, {"accum_steps": 2}),
        (1, {"parallel": "mesh"}),
        (2, {"parallel": "mesh"}),
        (8, {"parallel": "mesh"}),
        (2, {"parallel": "mesh", "fsdp": 2}),
        (8, {"parallel": "mesh", "fsdp": 2}),
        (4, {"parallel": "mesh", "fsdp": 4, "accum_steps": 2}),
    ],
    ids=lambda value: (
        "-".join(f"{k}={v}" for k, v in value.items()) or "pmap" if isinstance(value, dict) else str(value)
    ),
)
def test_same_curve_as_one_device(n_devices: int, fields: dict[str, Any]) -> None:
    loss, norm, params = _curve(_config(), 1)
    assert loss[-1].mean() < loss[0].mean() - 0.05  # it learns, so that 50 steps could drift apart
    found_loss, found_norm, found_params = _curve(_config(**fields), n_devices)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(found_norm, norm, rtol=1e-4)
    for name, values in params.items():
        np.testing.assert_allclose(found_params[name], values, rtol=1e-3, atol=1e-5, err_msg=name)


def test_fsdp_cuts_the_parameters_and_pmap_does_not() -> None:
    config = _config(parallel="mesh", fsdp=2)
    axes = sharded_axes(config)
    assert {"W_E", "W_U", "W_Q", "W_K", "W_V", "W_O"} <= axes.keys()
    state = ParallelStep(config, jax.devices()[:8]).put_state(init_state(config))
    for name, value in state.params.items():
        shard = value.addressable_data(0).shape
        expected = tuple(n // 2 if i == axes.get(name) else n for i, n in enumerate(value.shape))
        assert shard == expected, name
    whole = ParallelStep(_config(), jax.devices()[:8]).put_state(init_state(config))
    assert all(value.sharding.is_fully_replicated for value in whole.params.values())


@pytest.mark.parametrize("fields", [{}, {"parallel": "mesh", "fsdp": 2}], ids=["pmap", "fsdp"])
def test_devices_make_the_same_first_state_as_one(fields: dict[str, Any]) -> None:
    parallel = ParallelStep(_config(**fields), jax.devices()[:4])
    made, expected = parallel.init_state(), parallel.put_state(init_state(_config()))
    for found, wanted in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        assert found.sharding == wanted.sharding
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("compute_dtype", "precision"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_float32_products_are_in_float32_on_any_device(compute_dtype: str, precision: str) -> None:
    lowered = ParallelStep(tiny_config(model={"compute_dtype": compute_dtype}), jax.devices()[:1]).lower()
    found = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", lowered.as_text())
    assert set(found) == {(precision, precision)}


@pytest.mark.parametrize("fields", [{}, {"parallel": "mesh", "fsdp": 2}], ids=["pmap", "fsdp"])
def test_a_second_copy_to_the_host_compiles_nothing(fields: dict[str, Any]) -> None:
    """What every snapshot, state and probe takes of the parameters."""
    parallel = ParallelStep(_config(**fields), jax.devices()[:4])
    state = parallel.init_state()
    first = parallel.to_host(state)
    with counted_compilations() as compiled:
        second = parallel.to_host(state)
        parallel.replicate(state.params)
    assert compiled == []
    for found, expected in zip(jax.tree.leaves(second), jax.tree.leaves(first), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size = 16: must be divisible by 3 devices"):
        ParallelStep(_config(), jax.devices()[:3])


def test_resume_on_other_devices_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    """State saved by two devices under pmap goes on under a mesh of four with sharded parameters."""
    train_here(tiny_config(), tmp_path / "one")
    train_here(tiny_config(), tmp_path / "moved", n_devices=2, stop_at=4)
    train_here(tiny_config(train={"parallel": "mesh", "fsdp": 2}), tmp_path / "moved", n_devices=4)
    np.testing.assert_allclose(recorded(tmp_path / "moved")["loss"], recorded(tmp_path / "one")["loss"], rtol=1e-5)


# --- several processes, each with one CPU device, on the loopback interface ---


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _start_two(*args: str | Path, program: tuple[str, ...] = CLI) -> list[subprocess.Popen[str]]:
    shared = ("--coordinator", f"127.0.0.1:{_free_port()}", "--processes", "2")
    return [start_cli("train", *args, *shared, "--process-id", str(i), program=program) for i in range(2)]


@pytest.mark.slow
def test_a_process_saves_and_resumes_with_its_shards_and_about_one_array_of_memory(tmp_path: Path) -> None:
    """Two processes of four devices each, fsdp 8: half of a state of 0.4 GB is either's."""
    program, port = (sys.executable, "-m", "tests.train.sharded_memory"), str(_free_port())
    processes = [start_cli(port, "2", str(i), tmp_path, program=program) for i in range(2)]
    for status, out, err in [finish(process) for process in processes]:
        assert status == 0, err
        memory = json.loads(out.splitlines()[-1])
        assert memory["own"] < 2.1e8
        assert memory["saving"] <= memory["own"] + memory["largest"]
        assert memory["loading"] <= memory["own"] + 1.25 * memory["largest"]


def _own_lines(text: str) -> list[str]:
    """Without what Gloo, the collectives' library, prints from C++ threads that interrupt each other."""
    return [line for line in text.splitlines() if line.strip() and "[Gloo]" not in line and "peer ranks" not in line]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY.replace("n_steps = 8", f"n_steps = {N_STEPS}").replace("batch_size = 8", "batch_size = 16"))
    return path


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "run"
    train_here(_config(), path)
    return path


def _assert_close(run: Path, expected: Path) -> None:
    assert list(problems(RunDir.open(str(run)))) == []
    for name, values in recorded(expected).items():
        np.testing.assert_allclose(recorded(run)[name], values, rtol=1e-5, atol=1e-5)
    steps = [entry.step for entry in RunDir.open(str(expected)).manifest.read()]
    assert [entry.step for entry in RunDir.open(str(run)).manifest.read()] == steps
    for step in steps:
        for name, values in snapshot(expected, step).items():
            np.testing.assert_allclose(
                snapshot(run, step)[name], values, rtol=1e-3, atol=1e-5, err_msg=f"{step} {name}"
            )


@pytest.mark.parametrize("options", [(), ("--train.parallel", "mesh", "--train.fsdp", "2")], ids=["pmap", "fsdp"])
def test_two_processes(config_file: Path, one_process: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    results = [finish(process) for process in _start_two(config_file, "--run", run, *options)]
    assert [status for status, _, _ in results] == [0, 0], results
    (_, out, _), (_, other_out, _) = results
    assert "2 processes" in out
    assert _own_lines(other_out) == []  # one of them talks
    _assert_close(run, one_process)
    starts = RunDir.open(str(run)).environment["starts"]
    assert [start["processes"] for start in starts] == [2]


def test_members_over_two_processes(config_file: Path, tmp_path: Path) -> None:
    """The bits of one process; each waits for the other where what they have is fetched, and in no step."""
    many, run = MembersConfig(seeds="2..4", values="optimizer.lr=0.003,0.001"), tmp_path / "run"
    options = ("--members.seeds", many.seeds, "--members.values", many.values, "--devices", "1")
    results = [finish(process) for process in _start_two(config_file, "--run", run, *options)]
    assert [status for status, _, _ in results] == [0, 0], results
    assert "6 members" in results[0][1]
    train_here(dataclasses.replace(_config(), members=many), tmp_path / "one")
    assert_same_run(run, tmp_path / "one")


def test_signal_to_one_of_two_processes_stops_both(config_file: Path, tmp_path: Path) -> None:
    n_steps = 2000  # never reached
    run = tmp_path / "run"
    options = ("--train.n-steps", str(n_steps), "--train.flush-every-s", "1")
    processes = _start_two(config_file, "--run", run, *options)
    wait_until(lambda: has_snapshot(run, 20), processes[0])
    processes[1].send_signal(signal.SIGTERM)
    results = [finish(process) for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    stopped_at = int(final_state(run)["step"])
    assert f"SIGTERM: state saved at step {stopped_at}" in results[0][1]
    assert 0 < stopped_at < n_steps
    # One process goes on with it, and a second signal stops that one.
    config = tiny_config(train={"n_steps": n_steps, "batch_size": 16, "flush_every_s": 1.0})
    stop_at = stopped_at + 5
    assert train_here(config, run, stop_at=stop_at).step == stop_at
    train_here(config, tmp_path / "one", stop_at=stop_at)
    np.testing.assert_allclose(recorded(run)["loss"], recorded(tmp_path / "one")["loss"], rtol=1e-5)
    assert len(recorded(run)["loss"]) == stop_at


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [(0, 1), (0,), (1,)], ids=["both", "first", "second"])
def test_preempted_and_resumed_by_other_processes_on_other_devices(
    config_file: Path, tmp_path: Path, signalled: tuple[int, ...]
) -> None:
    """Two processes, then one with four devices, then two again: the numbers of one process that nobody stopped."""
    n_steps, n_linear = 240, 30
    run = tmp_path / "run"
    options = ("--train.n-steps", str(n_steps), "--snapshots.n-linear", str(n_linear))
    command = (config_file, "--run", run, *options)
    processes = _start_two(*command)
    wait_until(lambda: has_snapshot(run, 8), processes[0])
    for i in signalled:
        processes[i].send_signal(signal.SIGTERM)
    results = [finish(process) for process in processes]
    assert [status for status, _, _ in results] == [0, 0], results
    first_stop = RunDir.open(str(run)).last_state_step() or 0
    alone = start_cli("train", *command, "--devices", "4")
    wait_until(lambda: has_snapshot(run, first_stop + 8), alone)
    alone.send_signal(signal.SIGTERM)
    status, out, err = finish(alone)
    assert status == 0, err
    assert f"resumes at step {first_stop}" in out
    second_stop = RunDir.open(str(run)).last_state_step() or 0
    assert 0 < first_stop < second_stop < n_steps
    results = [finish(process) for process in _start_two(*command)]
    assert [status for status, _, _ in results] == [0, 0], results
    starts = RunDir.open(str(run)).environment["starts"]
    assert [(start["step"], start["processes"]) for start in starts] == [(0, 2), (first_stop, 1), (second_stop, 2)]

    config = tiny_config(train={"n_steps": n_steps, "batch_size": 16}, snapshots={"n_linear": n_linear})
    train_here(config, tmp_path / "one")
    _assert_close(run, tmp_path / "one")
    np.testing.assert_array_equal(
        RunDir.open(str(run)).load_held_out().rows, RunDir.open(str(tmp_path / "one")).load_held_out().rows
    )
    for name, values in final_state(tmp_path / "one").items():
        np.testing.assert_allclose(final_state(run)[name], values, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(
    ("victim", "how"),
    [(1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)],
    ids=["worker", "coordinator", "machine"],  # one that stands still is to the others as one without power
)
def test_one_process_lost_ends_the_other_within_a_minute(
    config_file: Path, tmp_path: Path, record_property: Callable[[str, object], None], victim: int, how: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = (config_file, "--run", run, "--train.n-steps", "2000", "--snapshots.state-every-s", "1")
    start_s = time.monotonic()
    processes = _start_two(*command)
    lost, other = processes[victim], processes[1 - victim]
    try:
        wait_until(
            lambda: RunDir.is_run(str(run)) and RunDir.open(str(run)).last_state_step() is not None, processes[0]
        )
        lost.send_signal(how)
        lost_s = time.monotonic()
        status, _, err = finish(other)
        # A machine with other work takes longer for all; how much it shows in how long they took to start.
        assert time.monotonic() - lost_s < max(60, _HEARTBEAT_S + (lost_s - start_s))
    finally:
        lost.kill()
        lost.communicate()
    assert status != 0
    assert "Traceback" not in err
    if how == signal.SIGKILL and victim == 1:
        (line,) = _own_lines(err)
        assert line.startswith("icl-jax: process 0 of 2: another process failed or is gone")
    else:  # JAX's coordination service notices first, and there is no having it say less
        assert "another task died" in err
    # The run goes on.
    alone = start_cli("train", *command, "--devices", "2")
    assert alone.stdout is not None
    assert "resumes at step" in alone.stdout.readline()
    next_step = (RunDir.open(str(run)).last_state_step() or 0) + 1
    wait_until(lambda: has_snapshot(run, next_step), alone)
    alone.send_signal(signal.SIGTERM)
    status, _, alone_err = finish(alone)
    assert status == 0, alone_err
    assert list(problems(RunDir.open(str(run)))) == []
    # For the table of `make test-faults`. The devices are others now, so that sums are rounded otherwise.
    ours = [line.removeprefix("icl-jax: ")[:80] for line in _own_lines(err) if line.startswith("icl-jax: ")]
    said = ours[0] if ours else "JAX's own: another task died"
    fault = f"one of two processes {'killed' if how == signal.SIGKILL else 'silent'}, number {victim}"
    record_property("fault", (fault, said, "steps since the last state are done again", "see test_preempted"))


@pytest.mark.parametrize("broken", ["icl_jax.rundir.run.Record.create", "icl_jax.train.session.describe_start"])
def test_whatever_process_0_fails_by_ends_both(config_file: Path, tmp_path: Path, broken: str) -> None:
    """By an error that is not the user's as well, while the run is made or after: the others do not wait for it."""
    module, _, name = broken.rpartition(".")
    patched = f"import pkgutil; setattr(pkgutil.resolve_name({module!r}), {name!r}, lambda *a: 1 / 0)"
    program = (sys.executable, "-c", f"{patched}; from icl_jax.cli.main import main; main()")
    results = [finish(process) for process in _start_two(config_file, "--run", tmp_path / "run", program=program)]
    assert [status for status, _, _ in results] == [1, 2], results
    assert "ZeroDivisionError" in results[0][2]
    (line,) = _own_lines(results[1][2])
    assert line.startswith("icl-jax: process 0 cannot ")


def test_what_process_0_refuses_ends_both(config_file: Path, one_process: Path) -> None:
    results = [finish(process) for process in _start_two(config_file, "--run", one_process, "--optimizer.lr", "0.1")]
    assert [status for status, _, _ in results] == [2, 2], results
    errors = [_own_lines(err) for _, _, err in results]
    assert len(errors[0]) == len(errors[1]) == 1
    assert "optimizer.lr: 0.003 != 0.1" in errors[0][0]
    assert "process 0 cannot use this run directory" in errors[1][0]
