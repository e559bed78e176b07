"""What interventions do to a change, on records whose every curve is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from icl_jax.config import Config, MembersConfig, ModelConfig, ProbeConfig
from icl_jax.config.interventions import read
from icl_jax.report.causes import base_of, causes_rows, replaced, seeds_of
from icl_jax.rundir import HeldOut, RunDir, probe_steps
from icl_jax.rundir.record import ProbeResult, StepBlock
from tests.analysis.small_runs import BOS, config_of, random_rows

MODEL = ModelConfig(n_layers=2, d_model=12, n_heads=3, n_ctx=29, vocab_size=31)
N, N_STEPS = 4, 300
PREVIOUS = {"at": "pattern", "layers": 0, "heads": 0, "pattern": "previous"}
ONE_HEAD = {"what": "zero", "at": "result", "layers": 1, "except_heads": 0}
COPY = {"at": "result", "layers": 1, "heads": 0, "copy": 8.0}
REMOVED = {"what": "zero", "at": "result", "heads": "formed", "from": "first_induction_head"}
PER_STEP = 8 * MODEL.n_ctx
FORMS_AT = 120


def config_with(*tables: dict[str, Any], **train: Any) -> Config:
    config = config_of(MODEL, N_STEPS)
    return replace(
        config, train=replace(config.train, **train), intervene=read(list(tables)), members=MembersConfig(seeds=N),
        probes=ProbeConfig(n_probes=31, held_out_rows=1, n_sequences=2, repeat_len=7, n_repeats=2),
    )  # fmt: skip


def made(path: Path, config: Config, at: float, depth: float = 1.0) -> RunDir:
    """The late positions' loss falls by `depth` from 3 nats, half by step `at` and a little later in each seed."""
    held_out = HeldOut(random_rows(MODEL, 1), np.arange(1, MODEL.vocab_size, dtype=np.int32), BOS)
    run = RunDir.create(str(path), config, corpus_sha256="0" * 64, held_out=held_out)
    rng, steps, n_on = np.random.default_rng(0), np.arange(N_STEPS), len(config.intervene)
    done = 1 / (1 + np.exp(-(steps[:, None] - at - 3 * np.arange(N)) / 8))
    loss = np.full((N_STEPS, N, MODEL.n_ctx), 3.0)
    loss[..., 20:] -= (depth * done + 0.01 * rng.normal(size=done.shape))[..., None]
    flat = np.ones((N_STEPS, N), np.float32)
    run.open_record().write_steps(StepBlock(
        first_step=0, loss=loss.astype(np.float32), lr=3e-3 * flat, grad_norm=flat,
        step_s=np.ones(N_STEPS, np.float32),
        intervened=np.ones((N_STEPS, N, n_on), np.float32) if n_on else flat[0, :0],
    ))  # fmt: skip
    for step in probe_steps(config):
        heads = np.full((N, 2, 3), 0.02)
        heads[:, 1, 1] = 0.7 * (step >= FORMS_AT)
        heads[:2, 1, 2] = 0.6 * (step >= FORMS_AT + 100)  # in two of four seeds another takes over
        scores = dict.fromkeys(("icl_score", "icl_windowed", "icl_score_sem", "icl_sem"), np.zeros(N))
        run.open_record().write_probe(ProbeResult(
            step=step, held_out_loss=np.full((N, MODEL.n_ctx), 3.0), prefix_matching=heads, previous_token=heads,
            **scores,
        ))  # fmt: skip
    return run


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = stats.t(len(values) - 1, np.mean(values), stats.sem(values)).interval(0.95)
    return float(low), float(high)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[RunDir]:
    folder = tmp_path_factory.mktemp("causes")
    return [
        made(folder / "plain", config_with(), 150),
        made(folder / "given", config_with(PREVIOUS), 75),
        made(folder / "never", config_with(ONE_HEAD), 150, depth=0.0),
    ]


def test_a_condition_is_held_against_the_run_with_the_fewest_of_its_interventions() -> None:
    plain, given, one, both = (
        config_with(*tables).member(0) for tables in ((), (PREVIOUS,), (ONE_HEAD,), (COPY, PREVIOUS, ONE_HEAD))
    )
    other = replace(given, model=replace(given.model, d_model=18))
    longer = config_with(n_steps=900).member(0)
    assert base_of(plain, [plain, given]) is None
    assert base_of(given, [other, one, plain]) == 2
    assert base_of(given, [longer]) == 0
    assert base_of(other, [plain, given]) is None
    assert base_of(both, [plain, one]) == 1
    two = config_with(PREVIOUS, ONE_HEAD).member(0)
    assert base_of(both, [plain, two, one]) == 2
    assert base_of(both, [plain, other]) == 0


def test_each_condition_has_its_row(runs: list[RunDir]) -> None:
    seeds = seeds_of(runs, ["plain", "given", "never"])
    assert [(one.run, one.against, one.seed) for one in seeds[N : N + 2]] == [
        ("given", "plain", 0),
        ("given", "plain", 1),
    ]
    for k, one in enumerate(seeds[: 2 * N]):
        at = (150 if k < N else 75) + 3 * (k % N)
        assert one.half == pytest.approx(at * PER_STEP, abs=5 * PER_STEP)
        assert one.start < one.half < one.end
        assert one.size == pytest.approx(-1, abs=0.1)
        assert one.begin == pytest.approx(0, abs=0.05)
        assert one.last == pytest.approx(-1, abs=0.05)
    header, rows = causes_rows(seeds)
    plain, given, never = (dict(zip(header, row, strict=True)) for row in rows)
    assert (plain["changes"], given["changes"], never["changes"]) == ("4 of 4", "4 of 4", "0 of 4")
    assert never["half way, M tokens"] == never["times as late"] == "never"
    assert never["start, M tokens"] == "none found"
    ratio, low, high = (float(x.strip("()")) for x in given["times as late"].replace("to", "").split())
    assert ratio == pytest.approx(79.5 / 154.5, rel=0.05)
    logs = np.log([seeds[N + k].half / seeds[k].half for k in range(N)])
    within = stats.t(N - 1, logs.mean(), stats.sem(logs)).interval(0.95)
    assert (ratio, low, high) == pytest.approx(np.exp([logs.mean(), *within]), abs=0.005)
    last = [one.last for one in seeds[N : 2 * N]]
    assert given["at the end, nats"] == f"{np.mean(last):.2f} ({' to '.join(f'{x:.2f}' for x in _interval(last))})"
    assert plain["times as late"] == plain["against it, nats"] == ""
    assert given["against it, nats"].startswith(("+0.0", "-0.0"))
    assert never["against it, nats"].startswith("+1.0")


def test_a_run_that_trains_on_the_end_of_its_rows_is_judged_by_its_loss_there(tmp_path: Path) -> None:
    tables = ((), (PREVIOUS,))
    found = [made(tmp_path / str(i), config_with(*t, loss_from=25), 150) for i, t in enumerate(tables)]
    seeds = seeds_of(found, ["plain", "given"])
    assert seeds[0].begin == pytest.approx(3, abs=0.05)
    assert seeds[0].last == pytest.approx(2, abs=0.05)


def test_runs_without_interventions_have_no_rows(runs: list[RunDir]) -> None:
    assert seeds_of(runs[:1], ["plain"]) == []
    assert seeds_of(runs[1:2], ["given"]) == []


def test_heads_that_take_over(tmp_path: Path) -> None:
    found = replaced(made(tmp_path / "removed", config_with(REMOVED), 100))
    assert [one.at for one in found] == [FORMS_AT * PER_STEP] * N
    assert [(one.n_removed, one.n_new, one.n_same_layer) for one in found] == [(1, 1, 1)] * 2 + [(1, 0, 0)] * 2
    assert [one.first_new for one in found] == [(FORMS_AT + 100) * PER_STEP] * 2 + [np.inf] * 2
    assert found[0].last == pytest.approx(-1, abs=0.05)
