import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from icl_jax.config import Config, OptimizerConfig, ProbeConfig, SnapshotConfig, TrainConfig
from icl_jax.rundir import probe_steps, snapshot_steps

N_STEPS = st.integers(1, 20_000)
COUNT = st.integers(0, 300)


def _config(n_steps: int, *, n_linear: int = 0, n_log: int = 0, n_probes: int = 0) -> Config:
    return Config(
        train=TrainConfig(n_steps=n_steps),
        optimizer=OptimizerConfig(warmup_steps=0),
        snapshots=SnapshotConfig(n_linear=n_linear, n_log=n_log),
        probes=ProbeConfig(n_probes=n_probes),
    )


@given(N_STEPS, COUNT, COUNT)
def test_snapshots_rise_from_0_to_the_last_step(n_steps: int, n_linear: int, n_log: int) -> None:
    steps = snapshot_steps(_config(n_steps, n_linear=n_linear, n_log=n_log))
    assert steps[0] == 0
    assert steps[-1] == n_steps
    assert all(a < b for a, b in itertools.pairwise(steps))
    assert all(type(step) is int for step in steps)
    assert len(steps) <= n_linear + n_log + 2


@given(N_STEPS, COUNT, COUNT)
def test_more_snapshots_of_one_kind_leave_the_other_kind_in_place(n_steps: int, n_linear: int, n_log: int) -> None:
    both = set(snapshot_steps(_config(n_steps, n_linear=n_linear, n_log=n_log)))
    linear = set(snapshot_steps(_config(n_steps, n_linear=n_linear)))
    log = set(snapshot_steps(_config(n_steps, n_log=n_log)))
    assert both == linear | log


def test_known_snapshots() -> None:
    assert snapshot_steps(_config(1000)) == [0, 1000]
    assert snapshot_steps(_config(1000, n_linear=4)) == [0, 250, 500, 750, 1000]
    assert snapshot_steps(_config(1000, n_log=4)) == [0, 1, 10, 100, 1000]
    assert snapshot_steps(_config(1000, n_linear=4, n_log=4)) == [0, 1, 10, 100, 250, 500, 750, 1000]
    assert snapshot_steps(_config(1, n_linear=9, n_log=9)) == [0, 1]


@given(N_STEPS, COUNT, COUNT, COUNT)
def test_few_snapshots_leave_the_rest_to_the_probes(n_steps: int, n_linear: int, n_log: int, n_probes: int) -> None:
    every = _config(n_steps, n_linear=n_linear, n_log=n_log, n_probes=n_probes)
    few = dataclasses.replace(every, snapshots=dataclasses.replace(every.snapshots, keep="few"))
    kept, dropped = set(snapshot_steps(few)), set(snapshot_steps(every)) - set(snapshot_steps(few))
    assert kept == set(snapshot_steps(_config(n_steps, n_log=n_log)))
    assert set(probe_steps(few)) == set(probe_steps(every)) | dropped
    assert probe_steps(few) == sorted(probe_steps(few))


def test_a_default_run_has_about_200_snapshots_dense_at_both_scales() -> None:
    steps = snapshot_steps(dataclasses.replace(_config(10_000), snapshots=SnapshotConfig()))
    assert 150 < len(steps) <= 202
    assert max(b - a for a, b in itertools.pairwise(steps)) == 100
    assert {1, 2, 3, 4, 5} <= set(steps)


@given(N_STEPS, st.integers(2, 300))
def test_probes_rise_evenly_from_0_to_the_last_step(n_steps: int, n_probes: int) -> None:
    steps = probe_steps(_config(n_steps, n_probes=n_probes))
    assert steps[0] == 0
    assert steps[-1] == n_steps
    assert len(steps) == min(n_probes, n_steps + 1)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1


def test_no_probe_and_one_probe() -> None:
    assert probe_steps(_config(17)) == []
    assert probe_steps(_config(17, n_probes=1)) == [17]
    assert probe_steps(_config(17, n_probes=2)) == [0, 17]
